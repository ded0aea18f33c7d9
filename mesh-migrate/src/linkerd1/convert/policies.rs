//! Keys of `service` and `client`, each with its verdict.

use super::keys::{Kind, Say, Say::*};

type Keys = &'static [(&'static str, Say)];

/// Parameters of `service`.
pub(super) const SERVICE: Keys = &[
    ("totalTimeoutMs", Exact),
    ("responseClassifier", Kinds(CLASSIFIERS)),
    ("retries", In(RETRIES)),
    (
        "classificationTimeoutMs",
        Near("our proxy waits for trailers as long as the attempt may take"),
    ),
    (
        "retryBufferSize",
        Near("our proxy keeps as much of a request for repetitions as its own limit says"),
    ),
];

const ATTEMPTS: &str = "three repetitions of one request at most: Linkerd bounds them by its budget alone, per second \
     and as a part of all requests";

const RETRIES: Keys = &[
    (
        "budget",
        In(&[
            ("minRetriesPerSec", Near(ATTEMPTS)),
            ("percentCanRetry", Near(ATTEMPTS)),
            ("ttlSecs", Near(ATTEMPTS)),
        ]),
    ),
    ("backoff", Kinds(BACKOFFS)),
];

const BACKOFFS: &[Kind] = &[
    ("constant", Near("it grows with each repetition"), &[("ms", Exact)]),
    (
        "jittered",
        Near("it begins with `minMs` and grows"),
        &[("minMs", Exact), ("maxMs", Drop("it grows with no other end than the timeout"))],
    ),
];

const METHODS: Say = Near(ATTEMPTS);
const SAME_FAILURES: Say = Exact;

const CLASSIFIERS: &[Kind] = &[
    (
        "io.l5d.http.nonRetryable5XX",
        Near("an answer with `l5d-retryable: true` is not repeated, either"),
        &[],
    ),
    (
        "io.l5d.h2.nonRetryable5XX",
        Near("an answer with `l5d-retryable: true` is not repeated, either"),
        &[],
    ),
    ("io.l5d.http.retryableRead5XX", METHODS, &[]),
    ("io.l5d.http.retryableIdempotent5XX", METHODS, &[]),
    ("io.l5d.http.retryableAll5XX", METHODS, &[]),
    ("io.l5d.h2.retryableRead5XX", METHODS, &[]),
    ("io.l5d.h2.retryableIdempotent5XX", METHODS, &[]),
    ("io.l5d.h2.retryableAll5XX", METHODS, &[]),
    ("io.l5d.http.allSuccessful", SAME_FAILURES, &[]),
    ("io.l5d.h2.allSuccessful", SAME_FAILURES, &[]),
    ("io.l5d.h2.grpc.default", METHODS, GRPC),
    ("io.l5d.h2.grpc.compliant", METHODS, GRPC),
    ("io.l5d.h2.grpc.alwaysRetryable", METHODS, GRPC),
    ("io.l5d.h2.grpc.neverRetryable", Exact, GRPC),
    ("io.l5d.h2.grpc.retryableStatusCodes", METHODS, GRPC),
    ("io.l5d.nonRetryable5XX", OLD_NAME, &[]),
    ("io.l5d.retryableRead5XX", OLD_NAME, &[]),
    ("io.l5d.retryableIdempotent5XX", OLD_NAME, &[]),
    ("io.l5d.retryableAll5XX", OLD_NAME, &[]),
];

const OLD_NAME: Say = Near(
    "a name from before 1.0, read as `io.l5d.http.…`; three repetitions of one request at most",
);

const GRPC: Keys = &[
    ("retryableStatusCodes", Exact),
    ("successStatusCodes", Near("which statuses are failures is fixed in our statistics")),
];

/// Parameters of `client`.
pub(super) const CLIENT: Keys = &[
    ("loadBalancer", Kinds(BALANCERS)),
    ("failureAccrual", Kinds(ACCRUALS)),
    ("requestAttemptTimeoutMs", Exact),
    (
        "failFast",
        Off("an endpoint is left alone after failures in a row, not after one refused connection"),
    ),
    (
        "requeueBudget",
        In(&[
            ("minRetriesPerSec", NO_REQUEUE),
            ("percentCanRetry", NO_REQUEUE),
            ("ttlSecs", NO_REQUEUE),
        ]),
    ),
    ("hostConnectionPool", In(POOL)),
    ("clientSession", In(&[("idleTimeMs", SESSION), ("lifeTimeMs", SESSION)])),
    ("tls", In(TLS)),
    ("forwardClientCert", Off("the application gets no `x-forwarded-client-cert`")),
    ("requestAuthorizers", Drop("Istio's Mixer is not asked")),
    ("windowUpdateRatio", WINDOW),
    ("initialStreamWindowBytes", WINDOW),
    ("headerTableBytes", WINDOW),
    ("maxFrameBytes", WINDOW),
    ("maxHeaderListByts", WINDOW),
    ("maxHeaderListBytes", WINDOW),
    ("maxConcurrentStreamsPerConnection", WINDOW),
    ("thriftFramed", Drop("calls of Thrift are not read")),
    ("thriftProtocol", Drop("calls of Thrift are not read")),
    ("attemptTTwitterUpgrade", Drop("calls of Thrift are not read")),
];

const WINDOW: Say = Near("windows and frames of HTTP/2 have our own sizes");
const SESSION: Say = Drop("connections to applications live as long as they are used");
const NO_REQUEUE: Say = Near("a connection that fails is tried again elsewhere by our own rule");

const EFFORT: (&str, Say) = ("maxEffort", Drop("our balancer has its own"));
const PROBATION: (&str, Say) = ("enableProbation", Off("an endpoint that is gone is gone at once"));

const BALANCERS: &[Kind] = &[
    ("p2c", Near(BALANCED), &[EFFORT, PROBATION]),
    (
        "ewma",
        Near("of two by chance the one that is less busy, by requests in flight and latency"),
        &[EFFORT, PROBATION, ("decayTimeMs", Drop("how fast latency is forgotten is our own"))],
    ),
    (
        "aperture",
        Near("by requests in flight and latency among all endpoints, not a part of them"),
        &[
            EFFORT,
            PROBATION,
            ("smoothWindowMs", NO_APERTURE),
            ("smoothWin", NO_APERTURE),
            ("lowLoad", NO_APERTURE),
            ("highLoad", NO_APERTURE),
            ("minAperture", NO_APERTURE),
        ],
    ),
    ("heap", Near("of two by chance, not of all, the one that is less busy"), &[PROBATION]),
    ("roundRobin", Near(BALANCED), &[EFFORT, PROBATION]),
];

const BALANCED: &str =
    "requests are spread by load and latency, in turn only as far as endpoints are alike";
const NO_APERTURE: Say = Drop("all endpoints are used");

const ACCRUALS: &[Kind] = &[
    (
        "io.l5d.consecutiveFailures",
        Exact,
        &[("failures", Exact), ("backoff", Kinds(ACCRUAL_BACKOFFS))],
    ),
    (
        "io.l5d.successRate",
        Near(IN_A_ROW),
        &[
            ("successRate", Near(IN_A_ROW)),
            ("requests", Near(IN_A_ROW)),
            ("backoff", Kinds(ACCRUAL_BACKOFFS)),
        ],
    ),
    (
        "io.l5d.successRateWindowed",
        Near(IN_A_ROW),
        &[
            ("successRate", Near(IN_A_ROW)),
            ("window", Near(IN_A_ROW)),
            ("backoff", Kinds(ACCRUAL_BACKOFFS)),
        ],
    ),
    ("none", Exact, &[]),
    ("io.l5d.none", Exact, &[]),
];

const IN_A_ROW: &str =
    "an endpoint is left alone after five failures in a row, not by its success rate";

const ACCRUAL_BACKOFFS: &[Kind] = &[
    ("constant", Exact, &[("ms", Exact)]),
    (
        "jittered",
        Near("always `minMs`: it does not grow"),
        &[("minMs", Exact), ("maxMs", Drop("the time does not grow"))],
    ),
];

const POOL: Keys = &[
    ("minSize", Drop("connections are made when they are needed")),
    ("maxSize", Near("for all endpoints together, not for each")),
    ("idleTimeMs", Near("a connection that says nothing for so long is closed")),
    ("maxWaiters", Near("for all endpoints together, not for each")),
];

const TLS: Keys = &[
    ("enabled", Exact),
    ("commonName", Exact),
    ("disableValidation", Exact),
    ("trustCerts", Near("put all of them into one file: the first is used")),
    ("trustCertsBundle", Exact),
    (
        "clientAuth",
        In(&[
            ("certPath", Exact),
            ("keyPath", Exact),
            ("intermediateCertsPath", Near("append it to the file of `certPath`")),
        ]),
    ),
    ("protocols", Near("TLS 1.2 and 1.3")),
];
