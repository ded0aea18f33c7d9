//! The field names that the proxy itself looks at, recognized once.

/// Makes the enum, the list of its names, and nothing else.
macro_rules! known {
    ($($variant:ident $name:literal,)*) => {
        /// A field name that the proxy looks at.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Known {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
            /// Any other name that starts with `isthmus-` or `x-isthmus-`
            /// (`_` for `-` included: many applications do not see the
            /// difference).
            Mesh,
        }

        /// All but `Mesh`, which has no one name; in the order of the enum.
        const NAMES: &[(Known, &str)] = &[$((Known::$variant, $name),)*];
    };
}

known! {
    Authorization "authorization",
    Connection "connection",
    ContentLength "content-length",
    ContentType "content-type",
    Cookie "cookie",
    Date "date",
    Expect "expect",
    Forwarded "forwarded",
    GrpcMessage "grpc-message",
    GrpcStatus "grpc-status",
    GrpcTimeout "grpc-timeout",
    Host "host",
    Http2Settings "http2-settings",
    KeepAlive "keep-alive",
    LegacyClientId "l5d-client-id",
    ProxyError "l5d-proxy-error",
    Location "location",
    ProxyAuthenticate "proxy-authenticate",
    ProxyAuthorization "proxy-authorization",
    ProxyConnection "proxy-connection",
    RetryAfter "retry-after",
    SecWebSocketAccept "sec-websocket-accept",
    SecWebSocketKey "sec-websocket-key",
    SecWebSocketVersion "sec-websocket-version",
    Server "server",
    SetCookie "set-cookie",
    Te "te",
    TraceParent "traceparent",
    TraceState "tracestate",
    Trailer "trailer",
    TransferEncoding "transfer-encoding",
    Upgrade "upgrade",
    UserAgent "user-agent",
    Via "via",
    XForwardedClientCert "x-forwarded-client-cert",
    XForwardedFor "x-forwarded-for",
    XForwardedHost "x-forwarded-host",
    XForwardedPort "x-forwarded-port",
    XForwardedProto "x-forwarded-proto",
    XRealIp "x-real-ip",
    XRequestId "x-request-id",
    IsthmusClientId "x-isthmus-client-id",
    IsthmusError "isthmus-error",
}

/// Slots of the table; a power of two with room enough that a factor without
/// collisions is found at once.
const SLOTS: usize = 1024;
/// No name in this slot.
const EMPTY: u8 = u8::MAX;

/// Each name's place in a table without collisions, found by the compiler.
const TABLE: (u32, [u8; SLOTS]) = {
    let mut factor: u32 = 0x9e37_79b1;
    loop {
        if let Some(slots) = without_collision(factor) {
            break (factor, slots);
        }
        factor = factor.wrapping_add(0x3c6e_f372);
    }
};
static SLOT: [u8; SLOTS] = TABLE.1;

const fn without_collision(factor: u32) -> Option<[u8; SLOTS]> {
    let mut slots = [EMPTY; SLOTS];
    let mut index = 0;
    while index < NAMES.len() {
        let slot = slot_of(NAMES[index].1.as_bytes(), factor);
        if slots[slot] != EMPTY {
            return None;
        }
        slots[slot] = index as u8;
        index += 1;
    }
    Some(slots)
}

/// By length and three bytes of the name, whatever their case.
const fn slot_of(name: &[u8], factor: u32) -> usize {
    let length = name.len();
    let (first, middle, late) = (name[0] | 32, name[length / 2] | 32, name[length - 2] | 32);
    let key = u32::from_le_bytes([length as u8, first, middle, late]);
    (key.wrapping_mul(factor) >> (u32::BITS - SLOTS.trailing_zeros())) as usize
}

impl Known {
    /// The name's id, if it has one; in any case of letters.
    #[inline]
    pub fn of(name: &[u8]) -> Option<Self> {
        if name.len() < 2 {
            return None;
        }
        if let Some(&(known, text)) = NAMES.get(usize::from(SLOT[slot_of(name, TABLE.0)]))
            && name.eq_ignore_ascii_case(text.as_bytes())
        {
            return Some(known);
        }
        is_mesh(name).then_some(Self::Mesh)
    }

    /// The name in lower case; of `Mesh` its prefix.
    pub fn name(self) -> &'static str {
        NAMES.get(self as usize).map_or("isthmus-", |(_, name)| name)
    }
}

fn is_mesh(name: &[u8]) -> bool {
    match name[0] | 32 {
        b'i' => starts_with(name, b"isthmus-"),
        b'x' => starts_with(name, b"x-isthmus-") || is_spelled(name, b"x-forwarded-client-cert"),
        // What an earlier mesh told applications, by its other spelling.
        b'l' => is_spelled(name, b"l5d-client-id"),
        _ => false,
    }
}

fn is_spelled(name: &[u8], known: &[u8]) -> bool {
    name.len() == known.len() && starts_with(name, known)
}

/// `_` counts as `-`.
fn starts_with(name: &[u8], prefix: &[u8]) -> bool {
    let same = |(&given, &wanted): (&u8, &u8)| {
        given.eq_ignore_ascii_case(&wanted) || (given == b'_' && wanted == b'-')
    };
    name.len() >= prefix.len() && name.iter().zip(prefix).all(same)
}

/// A set of known names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KnownSet(u64);

const _: () = assert!((Known::Mesh as u8) < 64, "a known name is one bit of 64");

impl KnownSet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// These.
    pub const fn of(names: &[Known]) -> Self {
        let (mut set, mut index) = (0, 0);
        while index < names.len() {
            set |= 1 << names[index] as u8;
            index += 1;
        }
        Self(set)
    }

    /// Whether `name` is in it.
    pub const fn has(self, name: Known) -> bool {
        self.0 & (1 << name as u8) != 0
    }

    /// Whether any of `names` is in it.
    pub const fn has_any(self, names: Self) -> bool {
        self.0 & names.0 != 0
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, names: Self) -> Self {
        Self(self.0 | names.0)
    }

    /// All but `names`.
    #[must_use]
    pub const fn without(self, names: Self) -> Self {
        Self(self.0 & !names.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_in_any_case() {
        for &(known, name) in NAMES {
            assert_eq!(Known::of(name.as_bytes()), Some(known), "{name}");
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), Some(known), "{name}");
            assert_eq!(known.name(), name);
            assert_eq!(name, name.to_ascii_lowercase());
        }
    }

    #[test]
    fn only_those_names_are_known() {
        let others = ["", "a", "te2", "hosT2", "x-forwarded-forr", "dat", "via\0", "c", "\u{c}ate"];
        for name in others {
            assert_eq!(Known::of(name.as_bytes()), None, "{name:?}");
        }
        // Any one wrong byte makes it another name.
        for &(_, name) in NAMES {
            for at in 0..name.len() {
                let mut other = name.as_bytes().to_vec();
                other[at] = b'!';
                assert!(matches!(Known::of(&other), None | Some(Known::Mesh)), "{name} at {at}");
            }
        }
    }

    #[test]
    fn the_mesh_owns_its_prefixes_however_written() {
        let ours = [
            "isthmus-service",
            "X-Isthmus-Anything",
            "x_isthmus_client_id",
            "ISTHMUS_x",
            "l5d_client_id",
            "L5D-client_Id",
        ];
        for name in ours {
            assert_eq!(Known::of(name.as_bytes()), Some(Known::Mesh), "{name}");
        }
        let others = [
            "isthmus",
            "x-isthmu-s",
            "xisthmus-a",
            "l5d-client-idx",
            "l5d-dst",
            "isthmus.a",
            "isth_us-a",
            "x-isthmus+a",
        ];
        for name in others {
            assert_eq!(Known::of(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn sets_are_sets() {
        let some = KnownSet::of(&[Known::Te, Known::Mesh]);
        assert!(some.has(Known::Te) && some.has(Known::Mesh) && !some.has(Known::Via));
        assert!(some.has_any(KnownSet::of(&[Known::Via, Known::Te])));
        assert!(!some.has_any(KnownSet::of(&[Known::Via])));
        assert_eq!(some.without(KnownSet::of(&[Known::Te])), KnownSet::of(&[Known::Mesh]));
        assert_eq!(KnownSet::EMPTY.with(some), some);
    }
}
