//! Real sockets on loopback.

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use mesh_tunnel::RealNet;
use tokio::net::TcpStream;

use super::*;
use crate::dns::probe;

/// At a port that nobody has just now, by neither way.
async fn doors() -> Doors {
    let any = "127.0.0.1:0".parse().unwrap();
    for _ in 0..100 {
        match Doors::open(&RealNet, any).await {
            Ok(doors) => return doors,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}"),
        }
    }
    panic!("every port is taken");
}

async fn server() -> (SocketAddr, watch::Sender<Arc<Names>>, Drain) {
    let doors = doors().await;
    let (addr, drain) = (doors.addr().unwrap(), Drain::new());
    let table = watch::Sender::new(Arc::new(Names::parse("orders.shop 240.240.1.2\n")));
    doors.spawn(&table.subscribe(), &drain);
    (addr, table, drain)
}

fn question() -> Vec<u8> {
    let mut question = Message::query();
    let name = Name::from_ascii("orders.shop.mesh.").unwrap();
    question.add_query(Query::query(name, RecordType::A));
    question.to_vec().unwrap()
}

async fn by_tcp(stream: &mut TcpStream, question: &[u8]) -> io::Result<Message> {
    stream.write_u16(u16::try_from(question.len()).unwrap()).await?;
    stream.write_all(question).await?;
    let mut said = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut said).await?;
    Ok(Message::from_vec(&said).unwrap())
}

#[tokio::test]
async fn both_ways_lead_to_the_same_answer_and_to_the_newest_names() {
    let (addr, table, _drain) = server().await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(addr).await.unwrap();
    udp.send(&question()).await.unwrap();
    let mut said = [0; 512];
    let length = udp.recv(&mut said).await.unwrap();
    assert_eq!(Message::from_vec(&said[..length]).unwrap().answers.len(), 1);
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    assert_eq!(by_tcp(&mut tcp, &question()).await.unwrap().answers.len(), 1);
    table.send_replace(Arc::default());
    assert_eq!(by_tcp(&mut tcp, &question()).await.unwrap().answers.len(), 0);
}

#[tokio::test]
async fn a_connection_ends_when_it_says_nothing_sensible() {
    let (addr, _table, _drain) = server().await;
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    tcp.write_u16(u16::MAX).await.unwrap();
    assert!(tcp.read_u8().await.is_err(), "longer than any question");
}

#[tokio::test]
async fn who_fills_all_places_is_thrown_out() {
    let (addr, _table, _drain) = server().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(addr).await.unwrap());
    }
    let mut next = TcpStream::connect(addr).await.unwrap();
    let waited = timeout(PATIENCE * 2, by_tcp(&mut next, &question())).await;
    assert_eq!(waited.unwrap().unwrap().answers.len(), 1);
}

#[tokio::test]
async fn the_probe_tells_who_answers_from_who_does_not() {
    let (addr, _table, drain) = server().await;
    probe::ask(addr).await.unwrap();
    drain.finish(Duration::from_secs(1)).await;
    assert!(probe::ask(addr).await.unwrap_err().contains("refused"));
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let said = probe::ask(silent.local_addr().unwrap()).await.unwrap_err();
    assert!(said.contains("no answer within"), "{said}");
}

/// Who answers something else does not count as us.
#[tokio::test]
async fn the_probe_is_not_deceived_by_another_server() {
    let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = other.local_addr().unwrap();
    let refusing = async {
        let mut asked = [0; 512];
        let (length, from) = other.recv_from(&mut asked).await.unwrap();
        let asked = Message::from_vec(&asked[..length]).unwrap();
        let code = hickory_proto::op::ResponseCode::NXDomain;
        let said = Message::error_msg(asked.metadata.id, asked.metadata.op_code, code);
        other.send_to(&said.to_vec().unwrap(), from).await.unwrap();
    };
    let (said, ()) = tokio::join!(probe::ask(addr), refusing);
    assert!(said.unwrap_err().contains("does not know"));
}
