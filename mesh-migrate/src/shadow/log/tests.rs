use std::io::{BufReader, Cursor, Read};

use proptest::prelude::*;

use super::*;
use crate::testing::same_each_time;

fn read(text: &str) -> Result<Logged, Why> {
    request(text, 1).map_err(|skipped| skipped.why)
}

/// `GET /x host 200`, or why not.
fn short(text: &str) -> String {
    match read(text) {
        Ok(Logged { method, target, host, status, .. }) => {
            let status = status.map_or("-".to_owned(), |status| status.to_string());
            format!("{method} {target} {} {status}", host.as_deref().unwrap_or("-"))
        }
        Err(why) => format!("{why:?}"),
    }
}

fn are(table: &[(&str, &str)]) {
    for (line, expected) in table {
        assert_eq!(short(line), *expected, "{line}");
    }
}

#[test]
fn haproxy_is_read() {
    // Written by HAProxy 2.6, but for syslog's prefixes.
    are(&[
        (
            r#"127.0.0.1:55146 [30/Nov/2026:06:52:59.251] plain b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 "GET /a?b=c HTTP/1.1""#,
            "GET /a?b=c - 200",
        ),
        (
            r#"Feb  6 12:14:14 localhost haproxy[14389]: 10.0.1.2:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 {1wt.eu} {} "GET /index.html HTTP/1.1""#,
            "GET /index.html 1wt.eu 200",
        ),
        (
            r#"<134>Feb  6 12:14:14 localhost haproxy[14389]: ::1:33317 [06/Feb/2009:12:14:14.655] in~ b/s 10/0/30/69/+109 200 +2750 a=b - --NI 1/1/1/1/+1 0/0 "GET / HTTP/1.1""#,
            "GET / - 200",
        ),
        (
            r#"<134>1 2026-01-02T03:04:05.678Z h haproxy 1389 - - 10.0.1.2:33317 [06/Feb/2009:12:14:14.655] in b/s 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 "GET / HTTP/1.1""#,
            "GET / - 200",
        ),
        (
            r#"127.0.0.1:57752 [30/Nov/2026:06:53:00.255] captured b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 {Moz #22q#22 #7Bx#7Cy#7D|api.example:80} {nginx/1.22.1} "GET /a?b=c HTTP/1.1""#,
            "GET /a?b=c api.example:80 200",
        ),
        // One label is a host only where a host is expected first.
        (
            r#"127.0.0.1:5 [30/Nov/2026:06:53:00.255] c b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 {web:8080|gzip} {} "GET / HTTP/1.1""#,
            "GET / web:8080 200",
        ),
        (
            r#"127.0.0.1:5 [30/Nov/2026:06:53:00.255] c b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 {12|gzip|10.0.0.1} {} "GET / HTTP/1.1""#,
            "GET / - 200",
        ),
        (
            r#"127.0.0.1:32782 [30/Nov/2026:06:53:03.303] captured b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 {curl/7.88.1|other.example} {nginx/1.22.1} "GET http://h2.example/h2?x HTTP/2.0""#,
            "GET /h2?x h2.example 200",
        ),
        (
            r#"127.0.0.1:52908 [30/Nov/2026:06:53:02.263] ssl b/s 0/0/0/0/0 200 124 - - ---- 1/1/0/0/0 0/0 "GET /quo#22te HTTP/1.0" 0/-/-/-/0 -/-/-"#,
            "GET /quo\"te - 200",
        ),
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:53:01 +0000] "GET /quo#22te HTTP/1.0" 200 124 "" "" 56176 259 "clf" "b" "s" 0 0 0 0 0 ---- 1 1 0 0 0 0 0 "" "" "#,
            "GET /quo\"te - 200",
        ),
        (
            r#"127.0.0.1:55208 [30/Nov/2026:06:52:59.253] plain b/s 0/0/0/0/0 400 289 - - ---- 1/1/0/0/0 0/0 "OPTIONS * HTTP/1.1""#,
            "OPTIONS * - 400",
        ),
        (
            r#"127.0.0.1:5 [30/Nov/2026:06:52:59.253] plain b/s 0/0/-1/-1/0 -1 0 - - CC-- 1/1/0/0/0 0/0 "GET / HTTP/1.1""#,
            "GET / - -",
        ),
    ]);
}

#[test]
fn what_haproxy_writes_about_no_request_is_none() {
    are(&[
        (
            r#"127.0.0.1:55178 [30/Nov/2026:06:52:59.252] plain plain/<NOSRV> -1/-1/-1/-1/0 400 0 - - PR-- 1/1/0/0/0 0/0 "<BADREQ>""#,
            "BadRequest",
        ),
        (
            r#"haproxy[18113]: 127.0.0.1:34549 [15/Oct/2003:15:19:06.103] px px/<NOSRV> -1/-1/-1/-1/+50001 408 +2750 - - cR-- 2/2/2/0/+2 0/0 """#,
            "BadRequest",
        ),
        // A long target takes its end, quote and version from the line.
        (
            r#"127.0.0.1:5 [30/Nov/2026:06:52:59.252] plain b/s 0/0/0/0/0 200 124 - - ---- 2/2/0/0/0 0/0 "GET /llll"#,
            "Cut",
        ),
        (
            r#"127.0.0.1:55220 [30/Nov/2026:06:52:59.253] plain b/s 0/0/0/0/0 400 289 - - ---- 1/1/0/0/0 0/0 "CONNECT a.example:443 HTTP/1.1""#,
            "Connect",
        ),
        (
            r#"haproxy[14387]: 10.0.1.2:33313 [06/Feb/2009:12:12:51.443] fnt bck/srv1 0/0/5007 212 -- 0/0/0/0/3 0/0"#,
            "Unknown",
        ),
        ("Feb  6 12:12:09 localhost haproxy[14385]: Connect from 10.0.1.2 (www/HTTP)", "Unknown"),
    ]);
}

#[test]
fn common_and_combined_are_read() {
    // The first two were written by nginx 1.22.
    are(&[
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:52:59 +0000] "GET /a?b=c HTTP/1.1" 200 2 "-" "Moz \x22q\x22 {x|y}""#,
            "GET /a?b=c - 200",
        ),
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:53:00 +0000] "GET /back\x5Cslash\x22 HTTP/1.0" 200 2 "-" "-""#,
            "GET /back\\slash\" - 200",
        ),
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:53:02 +0000] "GET /caf\xC3\xA9 HTTP/1.0" 200 2 "-" "-""#,
            "Target",
        ),
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:53:02 +0000] "GET /a b HTTP/1.0" 200 2 "-" "-""#,
            "Target",
        ),
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:53:02 +0000] "\x16\x03\x01\x00\x05hello" 400 157 "-" "-""#,
            "BadRequest",
        ),
        (r#"127.0.0.1 - - [30/Nov/2026:06:53:02 +0000] "-" 408 - "-" "-""#, "BadRequest"),
        (r#"127.0.0.1 - - [30/Nov/2026:06:53:02 +0000] "" 400 0 "-" "-""#, "BadRequest"),
        (r#"127.0.0.1 - - [30/Nov/2026:06:53:02 +0000] "GET /" 200 5"#, "Cut"),
        // Apache's example, and its format with a virtual host.
        (
            r#"127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326"#,
            "GET /apache_pb.gif - 200",
        ),
        (
            r#"10.0.0.1 - john doe [10/Oct/2000:13:55:36 -0700] "GET / HTTP/1.0" 200 2326"#,
            "GET / - 200",
        ),
        (
            r#"www.example.com:443 10.0.0.1 - - [10/Oct/2000:13:55:36 -0700] "GET /\"x\" HTTP/1.1" 304 - "-" "x""#,
            "GET /\"x\" www.example.com:443 304",
        ),
        (
            r#"Feb  6 12:14:14 h nginx: 10.0.0.1 - - [30/Nov/2026:06:52:59 +0000] "DELETE /a HTTP/2.0" 204 0 "-" "-""#,
            "DELETE /a - 204",
        ),
        (
            r#"2001:db8:: - - [30/Nov/2026:06:52:59 +0000] api.example "GET /a HTTP/2.0" 204 0 "-" "-""#,
            "GET /a api.example 204",
        ),
        (
            r#"2026-01-02T03:04:05.6Z stdout F 10.0.0.1 - - [30/Nov/2026:06:52:59 +0000] "GET /a HTTP/1.1" 204 0 "-" "-""#,
            "GET /a - 204",
        ),
        (
            r#"127.0.0.1 - - [30/Nov/2026:06:52:59 +0000] "POST http://user@abs.example?q HTTP/1.1" 200 2 "-" "-""#,
            "POST /?q abs.example 200",
        ),
    ]);
}

#[test]
fn linkerd_is_read() {
    are(&[
        (
            r#"web:8080 10.1.2.3 - - [06/02/2019:12:14:14 UTC] "GET /a?b HTTP/1.1" 502 12 "-" "curl/7 "x"""#,
            "GET /a?b web:8080 502",
        ),
        (
            r#"- 10.1.2.3 - - [06/02/2019:12:14:14 UTC] "GET /a HTTP/1.0" 400 - "-" "-""#,
            "GET /a - 400",
        ),
        (
            r#"web.example - - - [06/02/2019:12:14:14 +0000] "POST /p.S/M HTTP/2" 200 - "-" "-""#,
            "POST /p.S/M web.example 200",
        ),
    ]);
}

#[test]
fn envoy_is_read() {
    are(&[
        (
            r#"[2016-04-15T20:17:00.310Z] "POST /api/v1/locations HTTP/2" 204 - 154 0 226 100 "10.0.35.28" "nsq2http" "cc21d9b0-cf5c-432b-8c7e-98aeb7988cd2" "locations" "tcp://10.0.2.1:80""#,
            "POST /api/v1/locations locations 204",
        ),
        // Istio's, with a user agent that has a quote.
        (
            r#"[2024-06-02T13:35:27.054Z] "GET /a HTTP/1.1" 302 UAEX ext_authz_denied - "-" 0 387 16 - "192.168.0.24" "a "b"" "9f69865b" "a.example.com" "-" outbound|80||dash.svc.cluster.local - 10.0.0.196:8443 192.168.0.24:41604 a.example.com -"#,
            "GET /a a.example.com 302",
        ),
        (
            r#"[2024-06-02T13:35:27.054Z] "GET /a HTTP/1.1" 0 DC 0 0 5 - "-" "-" "-" "-" "-""#,
            "GET /a - -",
        ),
        (
            r#"[2024-06-02T13:35:27.054Z] "- - HTTP/1.1" 400 DPE 0 11 0 - "-" "-" "-" "-" "-""#,
            "BadRequest",
        ),
        (
            r#"[2024-06-02T13:35:27.054Z] "CONNECT - HTTP/2" 200 - 0 11 0 - "-" "-" "-" "a:443" "-""#,
            "Connect",
        ),
        (
            r#"2024-06-02T13:35:27.1Z stderr F [2024-06-02T13:35:27.054Z] "GET /a HTTP/1.1" 200 - 0 0 5 - "-" "-" "-" "h" "-""#,
            "GET /a h 200",
        ),
        (
            "[2024-06-02 13:35:27.054][1][info][main] [source/server/server.cc:1] starting",
            "Unknown",
        ),
    ]);
}

#[test]
fn json_is_read() {
    are(&[
        (r#"{"method":"GET","path":"/a?b","authority":"h","response_code":200}"#, "GET /a?b h 200"),
        (
            r#"{"request_method":"GET","uri":"/rewritten","request_uri":"/a","http_host":"h:1","host":"h","status":"404"}"#,
            "GET /a h:1 404",
        ),
        (r#"{"method":"GET","path":"/a","query":"b=c","status":0}"#, "GET /a?b=c - -"),
        (r#"{"remote":"1","request":"PUT /a HTTP/1.1","status":201}"#, "PUT /a - 201"),
        (
            r#"{"msg":"handled request","request":{"method":"GET","uri":"/a","host":"h"},"status":200}"#,
            "GET /a h 200",
        ),
        (
            r#"{"RequestMethod":"GET","RequestPath":"/a","RequestHost":"h","DownstreamStatus":200}"#,
            "GET /a h 200",
        ),
        (
            r#"{"log":"h 10.0.0.1 - - [06/02/2019:12:14:14 UTC] \"GET /a HTTP/1.1\" 200 1 \"-\" \"-\"\n","stream":"stdout"}"#,
            "GET /a h 200",
        ),
        (r#"{"log":"{\"method\":\"GET\",\"path\":\"/a\"}\n","stream":"stdout"}"#, "GET /a - -"),
        (
            r#"Feb  6 12:14:14 localhost haproxy[14389]: {"http_method":"GET","url":"/a","status":200}"#,
            "GET /a - 200",
        ),
        (r#"{"method":"GET","path":"a"}"#, "BadRequest"),
        (r#"{"level":"info","message":"started"}"#, "Unknown"),
        (r#"{"method":"GET","#, "Unknown"),
    ]);
}

#[test]
fn a_log_is_read_line_by_line() {
    let good = r#"1.1.1.1 - - [30/Nov/2026:06:52:59 +0000] "GET /a HTTP/1.1" 200 2"#;
    let long = "x".repeat(MAX_LINE * 3);
    let mut log = format!("{good}\r\n\n{long}\nnonsense\n").into_bytes();
    log.extend(b"1.1.1.1 - - [30/Nov/2026:06:52:59 +0000] \"GET /b HTTP/1.1\" 200 2 \"\xe9\"\n");
    log.extend(good.as_bytes());
    // However little comes at a time.
    for capacity in [1, 7, 1 << 16] {
        let mut requests = requests(BufReader::with_capacity(capacity, Cursor::new(&log)));
        let found: Vec<_> = requests.by_ref().collect();
        let lines: Vec<_> = found.iter().flatten().map(|r| (r.line, r.target.as_str())).collect();
        assert_eq!(lines, [(1, "/a"), (5, "/b"), (6, "/a")]);
        let skipped: Vec<_> = found.iter().filter_map(|found| found.clone().err()).collect();
        let skipped: Vec<_> = skipped.iter().map(|skipped| (skipped.line, skipped.why)).collect();
        assert_eq!(skipped, [(3, Why::TooLong), (4, Why::Unknown)]);
        assert_eq!(requests.skipped(), &BTreeMap::from([(Why::TooLong, 1), (Why::Unknown, 1)]));
        assert!(requests.next().is_none());
        assert!(requests.text.capacity() <= 2 * MAX_LINE);
    }
}

#[test]
fn the_longest_line_is_read() {
    let line = |more: usize| {
        let start = r#"1.1.1.1 - - [30/Nov/2026:06:52:59 +0000] "GET /a HTTP/1.1" 200 2 "-" ""#;
        format!("{start}{}\"\r\n", "u".repeat(MAX_LINE - 1 - start.len() + more))
    };
    let found: Vec<_> = requests(Cursor::new(line(0) + &line(1) + &line(0))).collect();
    assert!(found[0].is_ok() && found[2].is_ok());
    assert_eq!(found[1], Err(Skipped { line: 2, why: Why::TooLong }));
}

#[test]
fn an_error_ends_the_log() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let log = Cursor::new("x\n").chain(BufReader::new(Broken));
    let whys: Vec<_> = requests(log).map(|found| found.map_err(|skipped| skipped.why)).collect();
    assert_eq!(whys, [Err(Why::Unknown), Err(Why::Read(io::ErrorKind::PermissionDenied))]);
}

proptest! {
    #![proptest_config(same_each_time(2000))]

    #[test]
    fn nothing_panics(text in r#"([ \[\]{}":\\#x/|-]|GET|HTTP/1.1|[0-9]{1,3}|é|a)*"#) {
        let _ = read(&text);
        let _ = read(&format!("1.1.1.1 - - [x] {text}"));
        let _ = read(&format!("1.1.1.1:1 [x] f b/s 1/1/1/1/1 200 1 {text}"));
        let _ = read(&format!("[x] \"GET {text}"));
    }
}
