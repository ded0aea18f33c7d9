//! The warm path allocates nothing: an exchange on a connection that was idle.

use std::{io, pin::pin, task::Waker};

use http_body_util::Empty;
use mesh_tunnel::Io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nKeep-Alive: timeout=5\r\n\
    Transfer-Encoding: chunked\r\n\r\n6\r\nanswer\r\n0\r\n\r\n";

/// Answers each write.
struct Echo {
    due: bool,
}

impl Io for Echo {}

impl AsyncRead for Echo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !std::mem::take(&mut self.due) {
            return Poll::Pending;
        }
        buf.put_slice(ANSWER);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Echo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.due = true;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn now<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(ready) => ready,
        Poll::Pending => panic!("nothing to wait for"),
    }
}

fn exchange(apps: &Arc<Apps>, target: SocketAddr, head: &RequestHead, answer: &mut ResponseHead) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut exchange = Exchange::new(apps, target, head, Empty::<Bytes>::new());
    now(pin!(exchange.final_head(answer)).poll(&mut cx)).unwrap();
    let mut answer = exchange.into_answer().unwrap();
    let _sent = answer.poll_upload(&mut cx);
    while let Some(data) = now(answer.poll_data(&mut cx)).unwrap() {
        let count = data.len();
        answer.consume(count);
    }
    answer.finish();
}

#[test]
fn a_warm_exchange_allocates_nothing() {
    let (apps, target) = (apps(), ([127, 0, 0, 1], 80).into());
    let stream: Stream = Box::new(Echo { due: false });
    apps.give(target, apps.http1(stream), IDLE);
    let (head, mut answer) = (request(Method::GET), ResponseHead::new());
    let cold = allocation_counter::measure(|| exchange(&apps, target, &head, &mut answer));
    assert!(cold.count_total > 0, "the counter counts");
    let warm = allocation_counter::measure(|| {
        for _ in 0..100 {
            exchange(&apps, target, &head, &mut answer);
        }
    });
    assert_eq!(warm.count_total, 0);
    assert_eq!(apps.idle()[&target].len(), 1);
}
