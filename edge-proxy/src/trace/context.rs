//! How a request says to which trace it belongs: W3C `traceparent`, B3 in many
//! headers or in one, gRPC's `grpc-trace-bin`, and Linkerd 1.x's `l5d-ctx-trace`, looked
//! for in this order.
//! What a request said it in is what it goes on with. `tracestate` and
//! `baggage` pass as they are.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use mesh_core::message::{Fields, Known};

/// <https://www.w3.org/TR/trace-context/>, the flag `sampled`.
const SAMPLED: u8 = 1;
/// The flag `random`, which says something of the trace, not of the hop.
const RANDOM: u8 = 2;

/// gRPC pads no binary header, and reads those of who does.
const BINARY: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Linkerd 1.x pads.
const PADDED: GeneralPurpose = base64::engine::general_purpose::STANDARD;
/// How Linkerd 1.x says it.
const FINAGLE: &str = "l5d-ctx-trace";
/// Flags of Finagle: sampling is known, and it is wanted; debugging wants it, too.
const FINAGLE_DEBUG: u64 = 1;
const FINAGLE_KNOWN: u64 = 1 << 1;
const FINAGLE_SAMPLED: u64 = 1 << 2;

/// Where a request belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The whole trace.
    pub trace: [u8; 16],
    /// Whoever sent the request.
    pub span: [u8; 8],
    flags: u8,
    form: Form,
}

/// In which words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    W3c,
    /// Of a trace id with 16 digits only those are written again.
    B3Multi {
        short: bool,
    },
    B3Single {
        short: bool,
        debug: bool,
    },
    Binary,
    /// With those flags, which say more than ours.
    Finagle {
        short: bool,
        flags: [u8; 8],
    },
}

impl Context {
    /// `None` if it says nothing, or nothing that can be understood.
    pub fn read(fields: &Fields) -> Option<Self> {
        let w3c = || of_w3c(fields.known(Known::TraceParent)?);
        let single = || of_b3(fields.get("b3")?);
        let binary = || of_binary(fields.get("grpc-trace-bin")?);
        let finagle = || of_finagle(fields.get(FINAGLE)?);
        w3c().or_else(|| of_b3_multi(fields)).or_else(single).or_else(binary).or_else(finagle)
    }

    /// A trace that begins here.
    pub fn begin(trace: [u8; 16]) -> Self {
        Self { trace, span: [0; 8], flags: SAMPLED | RANDOM, form: Form::W3c }
    }

    /// Whether its spans are wanted.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Says that the request comes from `span` now.
    pub fn write(&self, span: [u8; 8], fields: &mut Fields) {
        let mut text = Vec::with_capacity(64);
        match self.form {
            Form::W3c => {
                text.extend(b"00-");
                put_hex(&self.trace, &mut text);
                text.push(b'-');
                put_hex(&span, &mut text);
                text.push(b'-');
                put_hex(&[self.flags & (SAMPLED | RANDOM)], &mut text);
                fields.remove_known(Known::TraceParent);
                fields.push_known(Known::TraceParent, &text);
            }
            Form::B3Multi { .. } => {
                put_hex(&self.span, &mut text);
                fields.set("x-b3-parentspanid", &text);
                text.clear();
                put_hex(&span, &mut text);
                fields.set("x-b3-spanid", &text);
            }
            Form::B3Single { short, debug } => {
                put_hex(&self.trace[if short { 8 } else { 0 }..], &mut text);
                text.push(b'-');
                put_hex(&span, &mut text);
                text.extend(match (debug, self.is_sampled()) {
                    (true, _) => b"-d-",
                    (false, true) => b"-1-",
                    (false, false) => b"-0-",
                });
                put_hex(&self.span, &mut text);
                fields.set("b3", &text);
            }
            Form::Finagle { short, flags } => {
                let (high, low) = self.trace.split_at(8);
                let high = if short { &[] } else { high };
                let parts = [&span, &self.span, low, &flags, high];
                let coded = PADDED.encode(parts.concat());
                fields.set(FINAGLE, coded.as_bytes());
            }
            Form::Binary => {
                let parts = [&[0, 0], &self.trace[..], &[1], &span, &[2, self.flags]];
                fields.set("grpc-trace-bin", BINARY.encode(parts.concat()).as_bytes());
            }
        }
    }
}

/// `00-<trace>-<span>-<flags>`; later versions may have more behind it.
fn of_w3c(value: &[u8]) -> Option<Context> {
    let [version] = hex(value.get(..2)?)?;
    let plain = version == 0 && value.len() == 55;
    let later = version != 0 && version != 0xff && value.get(55).is_none_or(|b| *b == b'-');
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    if !(plain || later) || !dashes {
        return None;
    }
    let (trace, span) = (hex(value.get(3..35)?)?, hex(value.get(36..52)?)?);
    let [flags] = hex(value.get(53..55)?)?;
    checked(Context { trace, span, flags, form: Form::W3c })
}

fn of_b3_multi(fields: &Fields) -> Option<Context> {
    let (trace, short) = b3_trace(fields.get("x-b3-traceid")?)?;
    let span = hex(fields.get("x-b3-spanid")?)?;
    let sampled = match (fields.get("x-b3-flags"), fields.get("x-b3-sampled")) {
        (Some(b"1"), _) | (_, Some(b"1" | b"true")) => SAMPLED,
        _ => 0,
    };
    checked(Context { trace, span, flags: sampled, form: Form::B3Multi { short } })
}

/// `<trace>-<span>[-<0|1|d>[-<parent>]]`
fn of_b3(value: &[u8]) -> Option<Context> {
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace, short) = b3_trace(parts.next()?)?;
    let span = hex(parts.next()?)?;
    let sampling = parts.next();
    let debug = sampling == Some(b"d");
    let flags = if debug || sampling == Some(b"1") { SAMPLED } else { 0 };
    checked(Context { trace, span, flags, form: Form::B3Single { short, debug } })
}

/// 16 or 32 digits, and whether they were 16.
fn b3_trace(text: &[u8]) -> Option<([u8; 16], bool)> {
    if text.len() != 16 {
        return hex(text).map(|trace| (trace, false));
    }
    let low: [u8; 8] = hex(text)?;
    let mut trace = [0; 16];
    trace[8..].copy_from_slice(&low);
    Some((trace, true))
}

/// Version 0, then trace, span and options, each behind its number:
/// <https://github.com/census-instrumentation/opencensus-specs/blob/master/encodings/BinaryEncoding.md>
fn of_binary(value: &[u8]) -> Option<Context> {
    // The longest that can be one.
    let mut bytes = [0; 48];
    let length = BINARY.decode_slice(value, &mut bytes).ok()?;
    let bytes = bytes.get(..length)?;
    let rest = bytes.strip_prefix(&[0, 0])?;
    let (trace, rest) = rest.split_first_chunk::<16>()?;
    let (span, rest) = rest.strip_prefix(&[1])?.split_first_chunk::<8>()?;
    let flags = rest.strip_prefix(&[2]).and_then(|rest| rest.first()).copied().unwrap_or(0);
    checked(Context { trace: *trace, span: *span, flags, form: Form::Binary })
}

/// Span, parent, trace, flags, of eight bytes each, and the high half of the trace if it
/// has one: Finagle's `com.twitter.finagle.tracing.TraceId.serialize`.
fn of_finagle(value: &[u8]) -> Option<Context> {
    let mut bytes = [0; 48];
    let length = PADDED.decode_slice(value, &mut bytes).ok()?;
    let (words, rest) = bytes.get(..length)?.as_chunks::<8>();
    let (span, low, flags, high) = match (words, rest) {
        ([span, _parent, low, flags], []) => (span, low, flags, None),
        ([span, _parent, low, flags, high], []) => (span, low, flags, Some(high)),
        _ => return None,
    };
    let mut trace = [0; 16];
    trace[..8].copy_from_slice(high.unwrap_or(&[0; 8]));
    trace[8..].copy_from_slice(low);
    let said = u64::from_be_bytes(*flags);
    let is_sampled =
        said & FINAGLE_DEBUG != 0 || (said & FINAGLE_KNOWN != 0 && said & FINAGLE_SAMPLED != 0);
    let form = Form::Finagle { short: high.is_none(), flags: *flags };
    checked(Context { trace, span: *span, flags: if is_sampled { SAMPLED } else { 0 }, form })
}

/// Ids of nothing but zeros are none.
fn checked(context: Context) -> Option<Context> {
    (context.trace != [0; 16] && context.span != [0; 8]).then_some(context)
}

/// Exactly `N` bytes of lower-case digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn put_hex(bytes: &[u8], text: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const NEW: [u8; 8] = [0xab; 8];

    fn fields(sent: &[(&str, &str)]) -> Fields {
        sent.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
    }

    fn told(fields: &Fields) -> Vec<(String, String)> {
        let text = |(name, value): (&str, &[u8])| {
            (name.to_owned(), String::from_utf8(value.to_vec()).unwrap())
        };
        let mut told: Vec<_> = fields.iter().map(text).collect();
        told.sort();
        told
    }

    #[test]
    fn every_form_goes_on_with_the_new_span() {
        let w3c = format!("00-{TRACE}-00f067aa0ba902b7-03");
        let later = format!("cc-{TRACE}-00f067aa0ba902b7-01-what-comes");
        let single = format!("{TRACE}-00f067aa0ba902b7-d-0000000000000001");
        let binary = "AABL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AgE";
        // Span, parent, trace, flags.
        let finagle = PADDED.encode(
            [
                &[0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7][..],
                &[1; 8],
                &[0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36],
                &6u64.to_be_bytes(),
            ]
            .concat(),
        );
        let after = PADDED.encode(
            [
                &NEW[..],
                &[0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7],
                &[0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36],
                &6u64.to_be_bytes(),
            ]
            .concat(),
        );
        let cases: [(&[(&str, &str)], &[(&str, String)]); 7] = [
            (&[(FINAGLE, &finagle)], &[(FINAGLE, after)]),
            (
                &[("traceparent", &w3c), ("tracestate", "a=b")],
                &[
                    ("traceparent", format!("00-{TRACE}-abababababababab-03")),
                    ("tracestate", "a=b".into()),
                ],
            ),
            (
                &[("traceparent", &later)],
                &[("traceparent", format!("00-{TRACE}-abababababababab-01"))],
            ),
            (
                &[
                    ("x-b3-sampled", "1"),
                    ("x-b3-spanid", "00f067aa0ba902b7"),
                    ("x-b3-traceid", "a3ce929d0e0e4736"),
                ],
                &[
                    ("x-b3-parentspanid", "00f067aa0ba902b7".into()),
                    ("x-b3-sampled", "1".into()),
                    ("x-b3-spanid", "abababababababab".into()),
                    ("x-b3-traceid", "a3ce929d0e0e4736".into()),
                ],
            ),
            (&[("b3", &single)], &[("b3", format!("{TRACE}-abababababababab-d-00f067aa0ba902b7"))]),
            (
                &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1")],
                &[("b3", "a3ce929d0e0e4736-abababababababab-1-00f067aa0ba902b7".into())],
            ),
            (
                &[("grpc-trace-bin", binary)],
                &[("grpc-trace-bin", "AABL+S81d7NNpqPOkp0ODkc2Aaurq6urq6urAgE".into())],
            ),
        ];
        for (sent, wanted) in cases {
            let mut fields = fields(sent);
            let context = Context::read(&fields).unwrap_or_else(|| panic!("{sent:?}"));
            assert!(context.is_sampled(), "{sent:?}");
            assert_eq!(context.span, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
            assert_eq!(context.trace[8..], [0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36]);
            context.write(NEW, &mut fields);
            let wanted: Vec<_> =
                wanted.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            assert_eq!(told(&fields), wanted);
            assert_eq!(Context::read(&fields).unwrap().span, NEW, "it can be read again");
        }
    }

    #[test]
    fn what_is_no_context_is_none() {
        let zeros = "0".repeat(32);
        let cases: &[(&str, &str)] = &[
            ("traceparent", ""),
            ("traceparent", &format!("00-{zeros}-00f067aa0ba902b7-01")),
            ("traceparent", &format!("00-{TRACE}-0000000000000000-01")),
            ("traceparent", &format!("ff-{TRACE}-00f067aa0ba902b7-01")),
            ("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01-more")),
            ("traceparent", &format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase())),
            ("traceparent", &format!("00-{TRACE}_00f067aa0ba902b7-01")),
            ("b3", "0"),
            ("b3", "a3ce929d0e0e4736"),
            ("grpc-trace-bin", "AAAA"),
            (FINAGLE, "AAAA"),
            (FINAGLE, "not base64!"),
            ("grpc-trace-bin", "not base64!"),
            ("grpc-trace-bin", &"A".repeat(1000)),
        ];
        for (name, value) in cases {
            assert_eq!(Context::read(&fields(&[(name, value)])), None, "{name}: {value}");
        }
    }

    #[test]
    fn who_does_not_want_spans_is_believed() {
        let unsampled = format!("00-{TRACE}-00f067aa0ba902b7-02");
        let ids = [("x-b3-spanid", "00f067aa0ba902b7"), ("x-b3-traceid", TRACE)];
        let cases: [Vec<(&str, &str)>; 4] = [
            vec![("traceparent", &unsampled)],
            ids.to_vec(),
            [&ids[..], &[("x-b3-sampled", "0")]].concat(),
            vec![("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-0")],
        ];
        for sent in cases {
            assert!(!Context::read(&fields(&sent)).unwrap().is_sampled(), "{sent:?}");
        }
        let debug = [&ids[..], &[("x-b3-flags", "1")]].concat();
        assert!(Context::read(&fields(&debug)).unwrap().is_sampled());
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(name in "(traceparent|b3|grpc-trace-bin|x-b3-traceid|l5d-ctx-trace)", value in "[ -~]{0,80}") {
            let fields = fields(&[(&name, value.trim()), ("x-b3-spanid", "00f067aa0ba902b7")]);
            if let Some(context) = Context::read(&fields) {
                let mut fields = fields;
                context.write(NEW, &mut fields);
                proptest::prop_assert_eq!(Context::read(&fields).unwrap().trace, context.trace);
            }
        }
    }
}
