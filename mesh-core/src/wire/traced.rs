//! Word of a traced request in a tunnel's stream.

use mesh_api::v1;

use super::{WireError, connect::connection_id, wrong};
use crate::path::Traced;

impl TryFrom<v1::Traced> for Traced {
    type Error = WireError;

    fn try_from(message: v1::Traced) -> Result<Self, WireError> {
        Ok(Self {
            connection_id: connection_id(message.connection_id)?,
            trace: id("trace_id", &message.trace_id)?,
            request: id("request", &message.request)?,
            parent: id("parent", &message.parent)?,
            ended: message.ended,
        })
    }
}

/// Ids of nothing but zeros are none.
fn id<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    let id = <[u8; N]>::try_from(bytes).ok().filter(|id| *id != [0; N]);
    id.ok_or_else(|| wrong(field, format_args!("must be {N} bytes and not all zero")))
}

impl From<&Traced> for v1::Traced {
    fn from(traced: &Traced) -> Self {
        Self {
            connection_id: traced.connection_id.clone(),
            trace_id: traced.trace.to_vec(),
            request: traced.request.to_vec(),
            parent: traced.parent.to_vec(),
            ended: traced.ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_or_nothing() {
        let whole = Traced {
            connection_id: "c1".into(),
            trace: [1; 16],
            request: [2; 8],
            parent: [3; 8],
            ended: true,
        };
        let sent = v1::Traced::from(&whole);
        assert_eq!(Traced::try_from(sent.clone()), Ok(whole));
        let refused = [
            v1::Traced { trace_id: vec![1; 15], ..sent.clone() },
            v1::Traced { trace_id: vec![0; 16], ..sent.clone() },
            v1::Traced { request: Vec::new(), ..sent.clone() },
            v1::Traced { parent: vec![3; 9], ..sent.clone() },
            v1::Traced { connection_id: "a b".into(), ..sent.clone() },
            v1::Traced { connection_id: "c".repeat(65), ..sent },
        ];
        for message in refused {
            assert!(Traced::try_from(message.clone()).is_err(), "{message:?}");
        }
    }
}
