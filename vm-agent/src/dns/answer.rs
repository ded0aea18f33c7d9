//! What is answered to whom asks (RFC 1034, 1035; RFC 2308 for what is not
//! there).

use std::{ops::Range, str::FromStr};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::SOA},
};

use super::names::{Addresses, Found, Names};

/// The domain of the mesh; it has no dot.
pub const DOMAIN: &str = "mesh";
/// The longest question, in bytes: a name is at most 255.
pub const LONGEST: usize = 4096;
/// Where in it the number of questions is: there is only ever one.
const QUESTIONS: Range<usize> = 4..6;
/// Seconds: addresses stay, but a machine may leave.
const TTL: u32 = 10;
/// Seconds for what is not there: it may come any moment.
const NEGATIVE_TTL: u32 = 2;
/// What may be sent to us in a datagram (RFC 9715).
const PAYLOAD: u16 = 1232;

/// The answer to a question; `None` for what is none. It is never longer than
/// 512 bytes.
pub fn answer(question: &[u8], names: &Names) -> Option<Vec<u8>> {
    if question.len() > LONGEST {
        return None;
    }
    // Room is made for as many as it claims to have, before they are read.
    if question.get(QUESTIONS) != Some(&[0, 1]) {
        return malformed(question);
    }
    let Ok(asked) = Message::from_vec(question) else { return malformed(question) };
    if asked.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut said = Message::response(asked.metadata.id, asked.metadata.op_code);
    said.metadata = Metadata::response_from_request(&asked.metadata);
    said.add_queries(asked.queries.iter().cloned());
    let mut code = say(&asked, &mut said, names);
    if let Some(edns) = &asked.edns {
        said.set_edns(own_edns());
        if edns.version() > 0 {
            code = ResponseCode::BADVERS;
        }
    }
    said.metadata.response_code = code;
    said.to_vec().ok()
}

fn own_edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0);
    edns
}

/// Whoever has sent something like a question hears that it is none.
fn malformed(question: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(*question.first_chunk::<2>()?);
    let is_question = question.get(2).is_some_and(|flags| flags & 0x80 == 0);
    let said = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    if is_question { said.to_vec().ok() } else { None }
}

fn say(asked: &Message, said: &mut Message, names: &Names) -> ResponseCode {
    if asked.metadata.op_code != OpCode::Query {
        return ResponseCode::NotImp;
    }
    let [query] = asked.queries.as_slice() else { return ResponseCode::FormErr };
    // Of others' names nothing is known: who asks asks the next server.
    let Some(name) = below_domain(query.name()) else { return ResponseCode::Refused };
    if query.query_class() != DNSClass::IN {
        return ResponseCode::Refused;
    }
    said.metadata.authoritative = true;
    let found = names.find(&name);
    let data = match (found, query.query_type()) {
        (Found::Service(addresses), kind) => records(addresses, kind),
        (Found::Empty, RecordType::SOA | RecordType::ANY) if name.is_empty() => vec![soa()],
        (Found::Empty | Found::Nothing, _) => Vec::new(),
    };
    if data.is_empty() {
        let Ok(apex) = Name::from_str(APEX) else { return ResponseCode::ServFail };
        said.add_authority(Record::from_rdata(apex, NEGATIVE_TTL, soa()));
    }
    let answers = data.into_iter().map(|data| Record::from_rdata(query.name().clone(), TTL, data));
    said.add_answers(answers);
    match found {
        Found::Nothing => ResponseCode::NXDomain,
        Found::Service(_) | Found::Empty => ResponseCode::NoError,
    }
}

fn records(addresses: Addresses, kind: RecordType) -> Vec<RData> {
    let is = |wanted: RecordType| kind == wanted || kind == RecordType::ANY;
    let v4 = addresses.v4.filter(|_| is(RecordType::A)).map(|ip| RData::A(ip.into()));
    let v6 = addresses.v6.filter(|_| is(RecordType::AAAA)).map(|ip| RData::AAAA(ip.into()));
    v4.into_iter().chain(v6).collect()
}

const APEX: &str = "mesh.";

/// What a name is called in the mesh; `None` if it is not of it.
fn below_domain(name: &Name) -> Option<String> {
    let name = name.to_lowercase();
    let mut labels: Vec<&[u8]> = name.iter().collect();
    if labels.pop()? != DOMAIN.as_bytes() {
        return None;
    }
    // A dot in a label separates nothing.
    let written = |label: &&[u8]| String::from_utf8_lossy(label).replace('.', "\\.");
    Some(labels.iter().map(written).collect::<Vec<_>>().join("."))
}

/// Nobody transfers it: it says how long nothing is nothing.
fn soa() -> RData {
    let name = || Name::from_str(APEX).unwrap_or_default();
    let seconds = NEGATIVE_TTL;
    RData::SOA(SOA::new(name(), name(), 1, 3600, 600, 86400, seconds))
}

#[cfg(test)]
mod tests;
