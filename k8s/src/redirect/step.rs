//! Rules as steps, and the expressions of nf_tables that they are.

use super::attributes::Attributes;

pub(super) const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_RETURN: i32 = -5;

/// One step of a rule; the next is taken if this one holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Load(Load),
    /// What was loaded is this.
    Is(Vec<u8>),
    /// It is something else.
    IsNot(Vec<u8>),
    /// It is in a set.
    In(&'static str),
    Return,
    Redirect(u16),
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    InLink,
    OutLink,
    SocketUser,
    Family,
    Protocol,
    Ipv4Destination,
    Ipv6Destination,
    DestinationPort,
}

impl Step {
    pub(super) fn expressions(&self) -> Vec<(&'static str, Attributes)> {
        let immediate = |register: u32, kind: u16, data: &Attributes| {
            let value = Attributes::default();
            let value =
                if kind == NFTA_DATA_VERDICT { value.nested(kind, data) } else { data.clone() };
            ("immediate", Attributes::default().number(1, register).nested(2, &value))
        };
        let compare = |operation: u32, value: &[u8]| {
            let value = Attributes::default().bytes(NFTA_DATA_VALUE, value);
            let data = Attributes::default().number(1, NFT_REG_1).number(2, operation);
            vec![("cmp", data.nested(3, &value))]
        };
        match self {
            Self::Load(load) => vec![load.expression()],
            Self::Is(value) => compare(NFT_CMP_EQ, value),
            Self::IsNot(value) => compare(NFT_CMP_NEQ, value),
            Self::In(set) => {
                vec![("lookup", Attributes::default().text(1, set).number(2, NFT_REG_1))]
            }
            Self::Return => {
                let code =
                    Attributes::default().number(NFTA_VERDICT_CODE, NFT_RETURN.cast_unsigned());
                vec![immediate(NFT_REG_VERDICT, NFTA_DATA_VERDICT, &code)]
            }
            Self::Redirect(port) => {
                let port = Attributes::default().bytes(NFTA_DATA_VALUE, &port.to_be_bytes());
                let to = Attributes::default().number(1, NFT_REG_1);
                vec![immediate(NFT_REG_1, NFTA_DATA_VALUE, &port), ("redir", to)]
            }
        }
    }
}

impl Load {
    fn expression(self) -> (&'static str, Attributes) {
        // Keys of `enum nft_meta_keys`; base, offset and length in a packet.
        let meta = |key: u32| ("meta", Attributes::default().number(1, NFT_REG_1).number(2, key));
        let payload = |base: u32, offset: u32, length: u32| {
            let to = Attributes::default().number(1, NFT_REG_1).number(2, base);
            ("payload", to.number(3, offset).number(4, length))
        };
        match self {
            Self::InLink => meta(6),
            Self::OutLink => meta(7),
            Self::SocketUser => meta(10),
            Self::Family => meta(15),
            Self::Protocol => meta(16),
            Self::Ipv4Destination => payload(1, 16, 4),
            Self::Ipv6Destination => payload(1, 24, 16),
            Self::DestinationPort => payload(2, 2, 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `nft --debug=all` shows it for `redirect to :4141`.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_redirect_is_what_nft_sends() {
        let hex: Vec<String> = Step::Redirect(4141)
            .expressions()
            .iter()
            .map(|(name, data)| {
                let hex: String = data.0.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{name} {hex}")
            })
            .collect();
        let port = "0800010000000001 0c000280 06000100102d0000".replace(' ', "");
        assert_eq!(hex, [format!("immediate {port}"), "redir 0800010000000001".into()]);
    }
}
