//! What becomes of a pod, and why.

use crate::{field::Field, own::PROXY_UID};

/// What has become of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has our parts.
    Injected {
        /// Whether anything of it is new.
        changed: bool,
        /// What its owner should know.
        warnings: Vec<Warning>,
    },
    /// It has none of them, and runs as it is.
    Skipped(Skip),
    /// It asks for what cannot be done; nothing of it was changed.
    Refused(Refusal),
}

/// Why a pod runs without a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// Label `isthmus.dev/inject: disabled`.
    #[error("its label isthmus.dev/inject says disabled")]
    Disabled,
    /// Neither it nor its namespace has the label.
    #[error("neither the pod nor its namespace has the label isthmus.dev/inject: enabled")]
    NotAsked,
    /// The rules would be those of the node.
    #[error("spec.hostNetwork is true: its network is the node's, which is not redirected")]
    HostNetwork,
    /// There is no proxy for them.
    #[error("it is for nodes that run Windows")]
    Windows,
    /// The kubelet has it from a file; the API server shows a copy.
    #[error("it is the mirror of a static pod, which the API server cannot change")]
    Mirror,
    /// Two meshes would redirect each other.
    #[error("container {container} is of another mesh")]
    OtherMesh {
        /// By which it is known.
        container: String,
    },
    /// It would never end.
    #[error(
        "it runs to completion, and a proxy that is no native sidecar would keep it from ending \
         (Kubernetes 1.29 has native sidecars)"
    )]
    RunsToCompletion,
}

impl Skip {
    /// A stable word for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NotAsked => "not_asked",
            Self::HostNetwork => "host_network",
            Self::Windows => "windows",
            Self::Mirror => "mirror",
            Self::OtherMesh { .. } => "other_mesh",
            Self::RunsToCompletion => "runs_to_completion",
        }
    }

    /// Whether it comes as a surprise to somebody who asked for the proxy.
    pub fn is_worth_telling(&self) -> bool {
        !matches!(self, Self::Disabled | Self::NotAsked | Self::Mirror)
    }
}

/// Why a pod cannot be injected as it is. The first thing said is the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No object of this kind has that there.
    #[error("{field}: must be {wanted}")]
    Shape {
        /// Where.
        field: Field,
        /// What would be right.
        wanted: &'static str,
    },
    /// An annotation, a label.
    #[error("{field}: {value:?}: {problem}")]
    Value {
        /// Where.
        field: Field,
        /// As it was written, shortened.
        value: String,
        /// What is wrong and the right form.
        problem: String,
    },
    /// Something else is called as our parts are.
    #[error(
        "{field}: {name} is a name of the mesh's own; choose another, or take a former injection \
         out with `meshctl uninject`"
    )]
    NameTaken {
        /// Where.
        field: Field,
        /// Which.
        name: String,
    },
    /// The proxy could not listen.
    #[error("{field}: {port} is a port of the proxy's; let the application listen on another")]
    PortTaken {
        /// Where.
        field: Field,
        /// Which.
        port: u16,
    },
    /// What that user sends is not redirected.
    #[error(
        "{field}: {PROXY_UID} is the proxy's own user, whose traffic passes by the mesh; run as another"
    )]
    ProxyUser {
        /// Where.
        field: Field,
    },
    /// The API server would refuse the redirect.
    #[error(
        "{field}: the namespace's label pod-security.kubernetes.io/enforce says {level}, which \
         forbids NET_ADMIN; write \"disabled\" there and let the application send by \
         http_proxy=127.0.0.1:4140, or use a namespace that is privileged"
    )]
    PodSecurity {
        /// The annotation that would help.
        field: Field,
        /// Which.
        level: &'static str,
    },
}

/// The longest value that an error repeats, in characters.
const MAX_SHOWN: usize = 80;

impl Refusal {
    /// A value that cannot be read.
    pub(crate) fn value(field: Field, value: &str, problem: impl ToString) -> Self {
        let value = value.chars().take(MAX_SHOWN).collect();
        Self::Value { field, value, problem: problem.to_string() }
    }

    /// The same of an object that holds the pod at `outer`.
    pub(crate) fn within(mut self, outer: &Field) -> Self {
        let (Self::Shape { field, .. }
        | Self::Value { field, .. }
        | Self::NameTaken { field, .. }
        | Self::PortTaken { field, .. }
        | Self::ProxyUser { field }
        | Self::PodSecurity { field, .. }) = &mut self;
        *field = field.within(outer);
        self
    }

    /// Where.
    pub fn field(&self) -> &Field {
        match self {
            Self::Shape { field, .. }
            | Self::Value { field, .. }
            | Self::NameTaken { field, .. }
            | Self::PortTaken { field, .. }
            | Self::ProxyUser { field }
            | Self::PodSecurity { field, .. } => field,
        }
    }

    /// A stable word for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Shape { .. } => "shape",
            Self::Value { .. } => "value",
            Self::NameTaken { .. } => "name_taken",
            Self::PortTaken { .. } => "port_taken",
            Self::ProxyUser { .. } => "proxy_user",
            Self::PodSecurity { .. } => "pod_security",
        }
    }
}

/// What the owner of an injected pod should know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// The kernel may end it sooner than before.
    #[error(
        "the pod's quality of service becomes Burstable; isthmus.dev/proxy-cpu-limit and \
         isthmus.dev/proxy-memory-limit keep it Guaranteed"
    )]
    NoLongerGuaranteed,
    /// `/proc/<pid>/root` and `ptrace` reach it.
    #[error("spec.shareProcessNamespace lets other containers of the pod look into the proxy")]
    SharedProcesses,
    /// They run before there are rules.
    #[error(
        "init containers run before the proxy and outside the mesh: it is no native sidecar here"
    )]
    InitOutsideMesh,
    /// `isthmus.dev/redirect: disabled`.
    #[error(
        "nothing is redirected: only what is sent to http_proxy=127.0.0.1:4140 leaves by the mesh"
    )]
    NoRedirect,
    /// An annotation of ours that nobody reads.
    #[error("annotation {name} is none of ours{}", meant(.nearest))]
    UnknownAnnotation {
        /// As it was written.
        name: String,
        /// What may be meant.
        nearest: Option<&'static str>,
    },
}

fn meant(name: &Option<&'static str>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}
