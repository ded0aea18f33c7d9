//! Proxies that are replaced while requests cross them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use crate::{
    programs::{PATIENCE, eventually},
    site::{GATEWAY, Machine, Site, link},
};

const CLIENT: Machine = Machine("client", 21);
const FAR: Machine = Machine("far", 23);

/// Clients that ask at once.
const CLIENTS: usize = 4;
/// How often a proxy is replaced.
const REPLACED: usize = 8;

/// Asks `client` again and again while `run` goes on, which is given what waits
/// until so many more are answered. What failed.
fn under_load(
    client: impl Fn(usize) -> Result<(), String> + Sync,
    run: impl FnOnce(&dyn Fn(usize)),
) -> Vec<String> {
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (stop, answered, failed, client) = (&stop, &answered, &failed, &client);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match client(number) {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.lock().unwrap().push(error),
                    }
                }
            });
        }
        run(&|more| {
            let until = answered.load(Ordering::Relaxed) + more;
            eventually("requests are answered", || {
                let now = answered.load(Ordering::Relaxed);
                if now < until { Err(format!("{now} of {until}")) } else { Ok(()) }
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    failed.into_inner().unwrap()
}

fn is_echoed(stream: &mut TcpStream) -> bool {
    let mut buf = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buf).is_ok() && &buf == b"ping"
}

/// Both gateways of a path between two sites, one after the other, under load:
/// no request fails, and what is open stays where it is.
#[test]
fn gateways_are_replaced_and_no_request_fails() {
    let (mut west, mut east) = (Site::start_as("west"), Site::start_as("east"));
    west.add(CLIENT);
    east.add_backing(FAR, "stock");
    link(&west, &east);
    eventually("the sites reach each other", || {
        west.request_to(CLIENT, "stock.shop")?;
        east.request(FAR)
    });
    // orders.shop is in west, and called from east.
    let mut open = TcpStream::connect(east.addr(FAR.1, 7000)).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_echoed(&mut open));

    let ask = |_| west.request_to(CLIENT, "stock.shop");
    let failed = under_load(ask, |enough| {
        enough(50);
        for site in [&west, &east] {
            assert!(!site.daemon(GATEWAY).replace().is_empty());
            enough(100);
            sleep(Duration::from_secs(1));
            enough(100);
        }
    });
    let logs = || format!("{}\n{}", west.daemon(GATEWAY).log(), east.daemon(GATEWAY).log());
    assert!(failed.is_empty(), "{}: {failed:#?}\n{}", failed.len(), logs());
    assert!(is_echoed(&mut open), "what was open goes on");
    for site in [&mut west, &mut east] {
        let log = site.daemon(GATEWAY).log();
        assert_eq!(site.daemon_mut(GATEWAY).ended(), None, "it carries what is open: {log}");
    }
    drop(open);
    for site in [&mut west, &mut east] {
        assert!(site.daemon_mut(GATEWAY).wait().success());
        let log = site.daemon(GATEWAY).log();
        assert!(log.contains("stopped cut=0") && !log.contains("panic"), "{log}");
    }
    west.request_to(CLIENT, "stock.shop").unwrap();
    east.request(FAR).unwrap();
}

/// The only proxy of a service, again and again, called in reverse by another
/// machine and by its own.
#[test]
fn the_only_proxy_of_a_service_is_replaced_and_no_request_fails() {
    let mut site = Site::start_as("west");
    site.add(CLIENT);
    site.add_backing(FAR, "stock");
    let ask = |number| {
        let from = if number % 2 == 0 { FAR } else { CLIENT };
        site.request_to(from, "orders.shop")
    };
    eventually("both reach it", || ask(0).and_then(|()| ask(1)));
    let proxy = site.daemon(&CLIENT.proxy());
    let failed = under_load(ask, |enough| {
        for _ in 0..REPLACED {
            enough(50);
            assert!(!proxy.replace().is_empty());
        }
        enough(50);
    });
    assert!(failed.is_empty(), "{}: {failed:#?}\n{}", failed.len(), proxy.log());
}
