//! HTTP/1 byte by byte, from a scripted client to a scripted application:
//! through two proxies, and through one to an application without a proxy.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{future::Future, net::SocketAddr, time::Duration};

use support::{Pair, Targets};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Nothing here takes long; a script that waits for ever fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a script.
struct Wire(TcpStream);

impl Wire {
    async fn to(addr: SocketAddr) -> Self {
        Self(TcpStream::connect(addr).await.unwrap())
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads up to the first place where what was read ends with `end`.
    async fn hear(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        let reading = async {
            while !heard.ends_with(end.as_bytes()) {
                heard.push(self.0.read_u8().await?);
            }
            Ok::<_, std::io::Error>(())
        };
        let read = timeout(PATIENCE, reading).await;
        let heard = String::from_utf8_lossy(&heard).into_owned();
        assert!(matches!(read, Ok(Ok(()))), "{end:?} never came: {read:?} after {heard:?}");
        heard
    }

    /// Reads to the end of the other side's direction.
    async fn rest(&mut self) -> String {
        let mut heard = Vec::new();
        timeout(PATIENCE, self.0.read_to_end(&mut heard)).await.unwrap().unwrap();
        String::from_utf8_lossy(&heard).into_owned()
    }

    /// Ends our direction.
    async fn end(&mut self) {
        self.0.shutdown().await.unwrap();
    }
}

/// An application that plays `script` on every connection, the first of which
/// is number 0.
async fn app<F, S>(script: S) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(Wire, usize) -> F + Send + 'static,
{
    let listener = TcpListener::bind(support::any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(Wire(stream), number));
        }
    });
    addr
}

/// Through two proxies, and through one.
async fn both<F, S, C, D>(script: S, client: C)
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(Wire, usize) -> F + Clone + Send + 'static,
    C: Fn(Wire) -> D,
    D: Future<Output = ()>,
{
    let two = Pair::start(Targets::all(app(script.clone()).await)).await;
    client(Wire::to(two.port("http")).await).await;
    let one = Pair::one_hop(Targets::all(app(script).await)).await;
    client(Wire::to(one.port("http")).await).await;
}

fn lower(text: &str) -> String {
    text.to_ascii_lowercase()
}

#[tokio::test]
async fn an_upgrade_becomes_bytes_both_ways() {
    let script = |mut app: Wire, _| async move {
        let asked = lower(&app.hear("\r\n\r\n").await);
        assert!(asked.contains("connection: upgrade\r\n"), "{asked}");
        assert!(asked.contains("upgrade: websocket\r\n"), "{asked}");
        assert!(asked.contains("sec-websocket-key: abc\r\n"), "{asked}");
        app.say(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: def\r\n\r\nfirst",
        )
        .await;
        assert_eq!(app.hear("ping").await, "ping");
        app.say("pong").await;
        assert_eq!(app.rest().await, "last");
        app.say("bye").await;
    };
    both(script, |mut client| async move {
        client
            .say(
                "GET /chat HTTP/1.1\r\nHost: orders.shop\r\nConnection: keep-alive, Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n",
            )
            .await;
        let head = lower(&client.hear("\r\n\r\n").await);
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("connection: upgrade\r\n"), "{head}");
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("sec-websocket-accept: def\r\n"), "{head}");
        assert_eq!(client.hear("first").await, "first");
        client.say("ping").await;
        assert_eq!(client.hear("pong").await, "pong");
        client.say("last").await;
        client.end().await;
        assert_eq!(client.rest().await, "bye");
    })
    .await;
}

#[tokio::test]
async fn a_declined_upgrade_is_an_ordinary_answer() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
        let asked = lower(&app.hear("\r\n\r\n").await);
        assert!(asked.starts_with("get /second"), "{asked}");
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    };
    both(script, |mut client| async move {
        client
            .say(
                "GET /chat HTTP/1.1\r\nHost: orders.shop\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\n\r\n",
            )
            .await;
        assert!(client.hear("\r\n\r\nno").await.starts_with("HTTP/1.1 200 "));
        client.say("GET /second HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        client.hear("\r\n\r\nok").await;
    })
    .await;
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let script = |mut app: Wire, _| async move {
        let asked = lower(&app.hear("\r\n\r\n").await);
        assert!(asked.contains("transfer-encoding: chunked\r\n"), "{asked}");
        let body = app.hear("\r\n\r\n").await;
        assert!(body.contains("hello"), "{body}");
        assert!(lower(&body).ends_with("0\r\nx-sum: 1\r\n\r\n"), "{body}");
        app.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Answer\r\n\r\n").await;
        app.say("3\r\nabc\r\n0\r\nX-Answer: 2\r\nContent-Length: 7\r\n\r\n").await;
    };
    both(script, |mut client| async move {
        client
            .say(
                "POST / HTTP/1.1\r\nHost: orders.shop\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5;x=y\r\nhello\r\n0\r\nX-Sum: 1\r\nTransfer-Encoding: gzip\r\n\r\n",
            )
            .await;
        client.hear("\r\n\r\n").await;
        let body = lower(&client.hear("\r\n\r\n").await);
        assert_eq!(body, "3\r\nabc\r\n0\r\nx-answer: 2\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_neither_chunks_nor_another_turn() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
        app.rest().await;
    };
    both(script, |mut client| async move {
        client.say("GET / HTTP/1.0\r\n\r\n").await;
        let answer = client.rest().await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(!lower(head).contains("transfer-encoding"), "{head}");
        assert!(lower(head).contains("connection: close"), "{head}");
        assert_eq!(body, "abc");
    })
    .await;
}

#[tokio::test]
async fn http_1_0_keeps_a_connection_that_it_asks_to_keep() {
    let script = |mut app: Wire, _| async move {
        loop {
            app.hear("\r\n\r\n").await;
            app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    };
    both(script, |mut client| async move {
        for _ in 0..2 {
            client.say("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
            let head = lower(&client.hear("\r\n\r\nok").await);
            assert!(head.contains("connection: keep-alive\r\n"), "{head}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_without_length_ends_with_its_connection() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.0 200 OK\r\n\r\nall of it").await;
    };
    both(script, |mut client| async move {
        client.say("GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        client.hear("\r\n\r\n").await;
        let body = client.hear("0\r\n\r\n").await;
        assert!(body.contains("all of it"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn heads_before_the_head_reach_the_client() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    };
    both(script, |mut client| async move {
        client.say("GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        let early = lower(&client.hear("\r\n\r\n").await);
        assert!(early.starts_with("http/1.1 103 ") && early.contains("link: </a.css>"), "{early}");
        assert!(client.hear("\r\n\r\nok").await.starts_with("HTTP/1.1 200 "));
    })
    .await;
}

#[tokio::test]
async fn who_waits_to_go_on_is_told_to() {
    let script = |mut app: Wire, _| async move {
        let head = lower(&app.hear("\r\n\r\n").await);
        assert!(!head.contains("expect:"), "{head}");
        assert_eq!(app.hear("hello").await, "hello");
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    };
    both(script, |mut client| async move {
        client
            .say(
                "POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 5\r\n\
                 Expect: 100-continue\r\n\r\n",
            )
            .await;
        assert_eq!(client.hear("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.say("hello").await;
        assert!(client.hear("\r\n\r\nok").await.starts_with("HTTP/1.1 200 "));
    })
    .await;
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno").await;
        app.0.shutdown().await.unwrap();
        app.rest().await;
    };
    both(script, |mut client| async move {
        client
            .say("POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 1000000000\r\n\r\nx")
            .await;
        assert!(client.hear("\r\n\r\nno").await.starts_with("HTTP/1.1 413 "));
    })
    .await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let script = |mut app: Wire, _| async move {
        loop {
            let head = app.hear("\r\n\r\n").await;
            let name = head.split(' ').nth(1).unwrap().to_owned();
            app.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
                .await;
        }
    };
    both(script, |mut client| async move {
        let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: orders.shop\r\n\r\n");
        client.say(&[one("/first"), one("/second"), one("/third")].concat()).await;
        for path in ["/first", "/second", "/third"] {
            client.hear(&format!("\r\n\r\n{path}")).await;
        }
    })
    .await;
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let script = |mut app: Wire, _| async move {
        loop {
            let head = app.hear("\r\n\r\n").await;
            let answer = match head.split(' ').next() {
                Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                _ if head.contains("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
            };
            app.say(answer).await;
        }
    };
    both(script, |mut client| async move {
        client.say("HEAD / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        let head = lower(&client.hear("\r\n\r\n").await);
        assert!(head.contains("content-length: 1000\r\n"), "{head}");
        client.say("GET /204 HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        let head = lower(&client.hear("\r\n\r\n").await);
        assert!(head.starts_with("http/1.1 204 ") && !head.contains("content-length"), "{head}");
        client.say("GET /304 HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n").await;
        let rest = client.rest().await;
        assert!(rest.starts_with("HTTP/1.1 304 ") && rest.ends_with("\r\n\r\n"), "{rest}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_application_closed_costs_nobody_a_request() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    };
    both(script, |mut client| async move {
        for _ in 0..20 {
            client.say("GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
            assert!(client.hear("\r\n\r\nok").await.starts_with("HTTP/1.1 200 "));
        }
    })
    .await;
}

#[tokio::test]
async fn what_comes_in_pieces_is_passed_on_in_pieces() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
        for word in ["one", "two"] {
            app.say(word).await;
            assert_eq!(app.hear(word).await, word, "the client has it before the next is sent");
        }
    };
    // The client says back on another connection what it has heard: here it
    // does on the request's own body.
    both(script, |mut client| async move {
        client.say("POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 6\r\n\r\n").await;
        client.hear("\r\n\r\n").await;
        for word in ["one", "two"] {
            client.hear(word).await;
            client.say(word).await;
        }
        client.hear("0\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn a_broken_answer_is_seen_to_be_broken() {
    let script = |mut app: Wire, _| async move {
        app.hear("\r\n\r\n").await;
        app.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    };
    both(script, |mut client| async move {
        client.say("GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        client.hear("\r\n\r\nhalf").await;
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, client.0.read_to_end(&mut rest)).await.unwrap();
        assert!(read.is_err() && rest.is_empty(), "{read:?} {rest:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_reaches_nobody() {
    let script = |_app: Wire, _| async move { panic!("nobody may come") };
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "400",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\nX: a\r\n\r\n", "400"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"),
    ];
    for (request, status) in cases {
        both(script, |mut client| async move {
            client.say(request).await;
            let answer = client.rest().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
            assert!(lower(&answer).contains("isthmus-error: bad_request\r\n"), "{answer}");
        })
        .await;
    }
}

#[tokio::test]
async fn opaque_bytes_reach_an_application_without_a_proxy() {
    let script = |mut app: Wire, _| async move {
        app.say("hello ").await;
        let asked = app.rest().await;
        app.say(&asked).await;
    };
    let pair = Pair::one_hop(Targets::all(app(script).await)).await;
    for port in ["tcp", "any"] {
        let mut client = Wire::to(pair.port(port)).await;
        assert_eq!(client.hear("hello ").await, "hello ");
        client.say("you").await;
        client.end().await;
        assert_eq!(client.rest().await, "you", "{port}");
    }
}
