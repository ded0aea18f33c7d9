//! The warm path allocates nothing: a proxy's whole exchange, after the first.

use mesh_core::message::hop;
use mesh_tunnel::Stream;

use super::*;

const REQUEST: &[u8] = b"POST /orders/1?x=y HTTP/1.1\r\nHost: orders.shop:80\r\n\
    User-Agent: test/1.0\r\nAccept: */*\r\nConnection: keep-alive\r\nX-Request-Id: 1234\r\n\
    Cookie: a=b\r\nContent-Length: 5\r\n\r\nhello";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 03:04:00 GMT\r\n\
    Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nanswer\r\n0\r\n\r\n";

/// Says the same again for each time that something was written.
struct Echo {
    text: &'static [u8],
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
        buf.put_slice(self.text);
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

struct Proxy {
    front: ServerConn<Stream>,
    back: ClientConn<Stream>,
    request: RequestHead,
    response: ResponseHead,
}

fn now<T>(poll: Poll<Result<T, ConnError>>) -> T {
    match poll {
        Poll::Ready(ready) => ready.unwrap(),
        Poll::Pending => panic!("nothing to wait for"),
    }
}

impl Proxy {
    fn exchange(&mut self, cx: &mut Context<'_>) {
        let Self { front, back, request, response } = self;
        let asked = now(front.poll_request(cx, request)).unwrap();
        hop::remove(&mut request.fields, hop::Upgrade::Drop);
        hop::remove_mesh(&mut request.fields);
        back.send_request(request, asked.body);
        while let Some(data) = now(front.poll_data(cx)) {
            let count = now(back.poll_send(cx, data));
            front.consume(count);
        }
        back.finish(None).unwrap();
        let answer = now(back.poll_response(cx, response));
        hop::remove(&mut response.fields, hop::Upgrade::Drop);
        front.send_head(response, answer.body);
        while let Some(data) = now(back.poll_data(cx)) {
            let count = now(front.poll_send(cx, data));
            back.consume(count);
        }
        front.finish(None).unwrap();
        now(front.poll_flush(cx));
        assert!(back.is_reusable() && !back.is_stale());
    }
}

#[test]
fn a_warm_exchange_allocates_nothing() {
    let buffers = Buffers::new();
    let stream = |text, due| -> Stream { Box::new(Echo { text, due }) };
    let mut proxy = Proxy {
        front: ServerConn::new(stream(REQUEST, true), Limits::default(), buffers.clone()),
        back: ClientConn::new(stream(RESPONSE, false), Limits::default(), buffers.clone()),
        request: RequestHead::new(),
        response: ResponseHead::new(),
    };
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let cold = allocation_counter::measure(|| proxy.exchange(&mut cx));
    assert!(cold.count_total > 0, "the counter counts");
    let warm = allocation_counter::measure(|| {
        for _ in 0..100 {
            proxy.exchange(&mut cx);
        }
    });
    assert_eq!(warm.count_total, 0);
}
