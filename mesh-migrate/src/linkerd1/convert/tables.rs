//! Keys of the manual of Linkerd 1.7.5 (`linkerd/docs/*.md`), each with its verdict.

use super::keys::{Kind, Say, Say::*};

type Keys = &'static [(&'static str, Say)];

const OUR_LOG: Say = Near("our own access log says the same in our own form");
const OUR_LIMIT: Say = Near("our own limit holds");
const OUR_SOCKET: Say = Drop("sockets have our own options");
const OUR_ADMIN: Say = Near("our proxy has an admin listener of its own");
const OUR_WINDOW: Say = Near("windows and frames of HTTP/2 have our own sizes");
const NO_ANNOUNCER: Say = Ask(
    "who tells ZooKeeper that this host serves it?",
    &["a service of the mesh", "keep Linkerd for it"],
);

/// The whole file; `routers` and `namers` are walked by the conversion.
pub(super) const TOP: Keys = &[
    ("admin", In(ADMIN)),
    ("routers", Elsewhere),
    ("namers", Elsewhere),
    ("telemetry", Kinds(TELEMETRY)),
    ("usage", Drop("nothing is reported to anybody")),
];

const ADMIN: Keys = &[
    ("ip", OUR_ADMIN),
    ("port", OUR_ADMIN),
    ("tls", Drop("our admin listener is on loopback")),
    ("security", Drop("our admin listener is on loopback")),
    ("socketOptions", OUR_SOCKET),
    ("workerThreads", Drop("there are as many threads as cores")),
    ("shutdownGraceMs", Near("our proxy drains for its own time")),
    ("httpIdentifierPort", Drop("`meshctl migrate explain` says what it said")),
];

const TELEMETRY: &[Kind] = &[
    (
        "io.l5d.prometheus",
        Near("our own metrics, at our own path"),
        &[
            ("path", Near("our metrics are at /metrics")),
            ("prefix", Drop("our names have no such prefix")),
        ],
    ),
    ("io.l5d.influxdb", Drop("read our metrics in Prometheus's form"), &[]),
    (
        "io.l5d.statsd",
        Drop("nothing is pushed: read our metrics in Prometheus's form"),
        &[
            ("hostname", Exact),
            ("port", Exact),
            ("prefix", Exact),
            ("gaugeIntervalMs", Exact),
            ("sampleRate", Exact),
        ],
    ),
    ("io.l5d.tracelog", Drop("our own logs"), &[("sampleRate", Exact), ("level", Exact)]),
    (
        "io.l5d.recentRequests",
        Drop("`meshctl tap` shows requests"),
        &[("sampleRate", Exact), ("capacity", Exact)],
    ),
    (
        "io.l5d.zipkin",
        Drop("no spans are sent to Zipkin"),
        &[("host", Exact), ("port", Exact), ("sampleRate", Exact)],
    ),
    ("io.l5d.commonMetrics", Near("our own metrics"), &[]),
];

/// A router; its parts that routes depend on are walked by the conversion.
pub(super) const ROUTER: Keys = &[
    ("protocol", Elsewhere),
    ("label", Exact),
    ("servers", In(SERVER)),
    ("dtab", Elsewhere),
    ("baseDtab", Elsewhere),
    ("dstPrefix", Exact),
    ("interpreter", Kinds(INTERPRETERS)),
    ("identifier", Kinds(IDENTIFIERS)),
    ("service", Elsewhere),
    ("client", Elsewhere),
    ("bindingTimeoutMs", Drop("names are bound before requests come: nothing waits for it")),
    ("bindingCache", Drop("routes are not bound by request: there is no such cache")),
    ("announcers", NO_ANNOUNCER),
    ("originator", Off("only statistics of Linkerd knew it")),
    ("experimental", Exact),
    ("httpAccessLog", OUR_LOG),
    ("httpAccessLogRollPolicy", OUR_LOG),
    ("httpAccessLogAppend", OUR_LOG),
    ("httpAccessLogRotateCount", OUR_LOG),
    ("h2AccessLog", OUR_LOG),
    ("h2AccessLogRollPolicy", OUR_LOG),
    ("h2AccessLogAppend", OUR_LOG),
    ("h2AccessLogRotateCount", OUR_LOG),
    ("maxHeadersKB", OUR_LIMIT),
    ("maxInitialLineKB", OUR_LIMIT),
    ("maxErrResponseKB", OUR_LIMIT),
    ("streamingEnabled", Near("bodies are always streamed")),
    ("streamAfterContentLengthKB", Near("bodies are always streamed")),
    ("compressionLevel", Near("answers stay as the application sends them, compressed or not")),
    ("tracePropagator", Near("trace headers pass as they are")),
    ("initialStreamWindowBytes", OUR_WINDOW),
    ("windowUpdateRatio", OUR_WINDOW),
    ("headerTableBytes", OUR_WINDOW),
    ("maxFrameBytes", OUR_WINDOW),
    ("maxHeaderListByts", OUR_LIMIT),
    ("maxHeaderListBytes", OUR_LIMIT),
    ("maxConcurrentStreamsPerConnection", OUR_LIMIT),
    ("thriftProtocol", Drop("calls of Thrift are not read")),
    ("thriftMethodInDst", Drop("calls of Thrift are not read")),
    ("thriftFramed", Drop("calls of Thrift are not read")),
];

const SERVER: Keys = &[
    ("port", Exact),
    ("ip", Exact),
    ("label", Exact),
    ("tls", In(SERVER_TLS)),
    ("socketOptions", OUR_SOCKET),
    (
        "maxConcurrentRequests",
        Drop("requests above it were refused at once; a listener has no such limit"),
    ),
    ("announce", NO_ANNOUNCER),
    (
        "clearContext",
        Near(
            "what clients say in l5d-ctx-*, l5d-dtab, dtab-local and l5d-sample does not go on; l5d-err of applications does",
        ),
    ),
    (
        "timeoutMs",
        Drop("requests through this server alone are not ended; `service.totalTimeoutMs` holds"),
    ),
    ("serverSession", Drop("connections of clients live as long as they want")),
    ("addForwardedHeader", Drop("the application gets no `Forwarded` (RFC 7239)")),
    ("timestampHeader", Drop("the application gets no such header")),
    ("maxCallDepth", Near("our own protection against loops holds")),
    ("windowUpdateRatio", OUR_WINDOW),
    ("initialStreamWindowBytes", OUR_WINDOW),
    ("headerTableBytes", OUR_WINDOW),
    ("maxFrameBytes", OUR_WINDOW),
    ("maxHeaderListByts", OUR_LIMIT),
    ("maxHeaderListBytes", OUR_LIMIT),
    ("maxConcurrentStreamsPerConnection", OUR_LIMIT),
    ("thriftFramed", Drop("calls of Thrift are not read")),
];

const SERVER_TLS: Keys = &[
    ("enabled", Exact),
    ("certPath", Exact),
    ("keyPath", Exact),
    ("intermediateCertsPath", Near("append it to the file of `certPath`")),
    ("caCertPath", Exact),
    ("requireClientAuth", Exact),
    ("protocols", Near("TLS 1.2 and 1.3")),
    ("ciphers", Near("our own suites")),
];

const HOP: Say = Near("where the hop goes: see what is said of the transformer");

// What the transformers that end in `Exact` are is said of them as a whole, too.
const TRANSFORMERS: &[Kind] = &[
    ("io.l5d.port", Exact, &[("port", HOP)]),
    ("io.l5d.localhost", Exact, &[]),
    ("io.l5d.specificHost", Exact, &[("host", Exact)]),
    (
        "io.l5d.k8s.daemonset",
        Exact,
        &[
            ("namespace", HOP),
            ("service", HOP),
            ("port", HOP),
            ("k8sHost", Drop("the mesh watches Kubernetes itself")),
            ("k8sPort", Drop("the mesh watches Kubernetes itself")),
            ("hostNetwork", Near("a node is found by the /24 of its addresses")),
        ],
    ),
    ("io.l5d.k8s.localnode", Exact, &[("hostNetwork", Near("a node is found by its /24"))]),
    ("io.l5d.replace", Exact, &[("path", Exact)]),
    ("io.l5d.const", Exact, &[("path", Exact)]),
];

const AWAY: Say = Near("the table that is there now is converted; later changes are not seen");
const AWAY_KEY: Say = Near("read once, when this is planned");

const INTERPRETERS: &[Kind] = &[
    ("", Exact, &[("transformers", Kinds(TRANSFORMERS))]),
    ("default", Exact, &[("transformers", Kinds(TRANSFORMERS))]),
    (
        "io.l5d.fs",
        AWAY,
        &[("dtabFile", AWAY_KEY), ("watched", AWAY_KEY), ("transformers", Kinds(TRANSFORMERS))],
    ),
    (
        "io.l5d.k8s.configMap",
        AWAY,
        &[
            ("name", AWAY_KEY),
            ("filename", AWAY_KEY),
            ("namespace", AWAY_KEY),
            ("host", AWAY_KEY),
            ("port", AWAY_KEY),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    (
        "io.l5d.consul.interpreter",
        AWAY,
        &[
            ("host", AWAY_KEY),
            ("port", AWAY_KEY),
            ("pathPrefix", AWAY_KEY),
            ("namespace", AWAY_KEY),
            ("token", AWAY_KEY),
            ("datacenter", AWAY_KEY),
            ("readConsistencyMode", AWAY_KEY),
            ("writeConsistencyMode", AWAY_KEY),
            ("failFast", AWAY_KEY),
            ("backoff", AWAY_KEY),
            ("tls", AWAY_KEY),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    ("io.l5d.namerd", AWAY, NAMERD),
    ("io.l5d.namerd.http", AWAY, NAMERD),
    ("io.l5d.mesh", AWAY, NAMERD),
    (
        "io.l5d.k8s.istio",
        Ask(
            "Istio Pilot bound these names: which services are they?",
            &["write routes", "keep Istio"],
        ),
        &[("host", Drop("Pilot is not asked")), ("port", Drop("Pilot is not asked"))],
    ),
];

const NAMERD: Keys = &[
    ("dst", AWAY_KEY),
    ("namespace", AWAY_KEY),
    ("root", AWAY_KEY),
    ("retry", Drop("namerd is not asked again")),
    ("tls", Drop("namerd is not asked again")),
    ("failureThreshold", Drop("namerd is not asked again")),
    ("client", Drop("namerd is not asked again")),
    ("failureAccrual", Drop("namerd is not asked again")),
    ("transformers", Kinds(TRANSFORMERS)),
];

const ONE_NAME: Say = Exact;

const IDENTIFIERS: &[Kind] = &[
    ("io.l5d.header.token", ONE_NAME, &[("header", Exact)]),
    ("io.l5d.headerToken", Near("an older name of io.l5d.header.token"), &[("header", Exact)]),
    ("io.l5d.header", ONE_NAME, &[("header", Exact)]),
    (
        "io.l5d.methodAndHost",
        ONE_NAME,
        &[(
            "httpUriInDst",
            AskOn(
                "the path is a part of the name, and rules are for all paths of a host: does an entry name a path?",
                &["none does", "write rules for those paths"],
            ),
        )],
    ),
    ("io.l5d.path", ONE_NAME, &[("segments", Exact), ("consume", Exact)]),
    ("io.l5d.header.path", ONE_NAME, &[("header", Exact), ("segments", Exact)]),
    (
        "io.l5d.headerPath",
        Near("an older name of io.l5d.header.path"),
        &[("header", Exact), ("segments", Exact)],
    ),
    ("io.l5d.static", ONE_NAME, &[("path", Exact)]),
    ("io.l5d.ingress", INGRESS, INGRESS_KEYS),
    ("io.l5d.http.ingress", INGRESS, INGRESS_KEYS),
    ("io.l5d.h2.ingress", INGRESS, INGRESS_KEYS),
    (
        "io.l5d.k8s.istio",
        Ask("routes were at Istio Pilot: what are they?", &["write routes", "keep Istio"]),
        &[("host", Drop("Pilot is not asked")), ("port", Drop("Pilot is not asked"))],
    ),
];

const INGRESS: Say =
    Near("the Ingresses that are there now are converted; patterns of Java are read as ours");

const INGRESS_KEYS: Keys = &[
    ("host", AWAY_KEY),
    ("port", AWAY_KEY),
    ("namespace", Exact),
    ("ingressClassAnnotation", Exact),
    ("ignoreDefaultBackends", Exact),
    ("useCapturingGroups", Off("the path is not rewritten with the groups of its pattern")),
];

const KNOWN_NOW: Say = Near(
    "names and endpoints that it knows now are converted; `meshctl migrate plan` again sees later ones",
);
const ASKED_NOW: Say = Near("how it is asked when this is planned");

/// Namers.
pub(super) const NAMERS: &[Kind] = &[
    (
        "io.l5d.fs",
        KNOWN_NOW,
        &[("rootDir", ASKED_NOW), ("prefix", Exact), ("transformers", Kinds(TRANSFORMERS))],
    ),
    (
        "io.l5d.consul",
        KNOWN_NOW,
        &[
            ("host", ASKED_NOW),
            ("port", ASKED_NOW),
            ("prefix", Exact),
            ("includeTag", Exact),
            ("useHealthCheck", ASKED_NOW),
            ("healthStatuses", ASKED_NOW),
            ("token", ASKED_NOW),
            ("setHost", Off("`Host` stays as the client sent it: it is not that of Consul's DNS")),
            ("consistencyMode", ASKED_NOW),
            ("failFast", ASKED_NOW),
            ("preferServiceAddress", ASKED_NOW),
            ("weights", ASKED_NOW),
            ("fixedLengthStreamedAfterKB", ASKED_NOW),
            ("tls", ASKED_NOW),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    ("io.l5d.k8s", KNOWN_NOW, K8S),
    ("io.l5d.k8s.ns", KNOWN_NOW, K8S),
    ("io.l5d.k8s.external", KNOWN_NOW, K8S),
    (
        "io.l5d.marathon",
        KNOWN_NOW,
        &[
            ("host", ASKED_NOW),
            ("port", ASKED_NOW),
            ("prefix", Exact),
            ("uriPrefix", ASKED_NOW),
            ("ttlMs", ASKED_NOW),
            ("jitterMs", ASKED_NOW),
            ("useHealthCheck", ASKED_NOW),
            ("basicHttpAuth", ASKED_NOW),
            ("tls", ASKED_NOW),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    ("io.l5d.serversets", KNOWN_NOW, ZK),
    ("io.l5d.zkLeader", KNOWN_NOW, ZK),
    ("io.l5d.curator", KNOWN_NOW, ZK),
    (
        "io.l5d.rancher",
        KNOWN_NOW,
        &[
            ("ttlMs", ASKED_NOW),
            ("portMappings", ASKED_NOW),
            ("prefix", Exact),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    (
        "io.l5d.dnssrv",
        KNOWN_NOW,
        &[
            ("refreshIntervalSeconds", ASKED_NOW),
            ("dnsHosts", ASKED_NOW),
            ("prefix", Exact),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    (
        "io.l5d.rewrite",
        Exact,
        &[
            ("prefix", Exact),
            ("pattern", Exact),
            ("name", Exact),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
    (
        "io.l5d.k8s.istio",
        Ask(
            "Istio Pilot knew these names: which services are they?",
            &["write routes", "keep Istio"],
        ),
        &[
            ("host", Drop("Pilot is not asked")),
            ("port", Drop("Pilot is not asked")),
            ("prefix", Exact),
            ("transformers", Kinds(TRANSFORMERS)),
        ],
    ),
];

const K8S: Keys = &[
    ("host", ASKED_NOW),
    ("port", ASKED_NOW),
    ("prefix", Exact),
    ("labelSelector", Exact),
    ("envVar", ASKED_NOW),
    ("namespace", ASKED_NOW),
    ("tls", ASKED_NOW),
    ("transformers", Kinds(TRANSFORMERS)),
];

const ZK: Keys = &[
    ("zkAddrs", ASKED_NOW),
    ("prefix", Exact),
    ("sessionTimeoutMs", ASKED_NOW),
    ("basePath", ASKED_NOW),
    ("transformers", Kinds(TRANSFORMERS)),
];
