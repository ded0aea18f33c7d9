//! Questions as programs ask them, answers as bytes.

use hickory_proto::op::Query;
use proptest::prelude::*;

use super::*;

fn names() -> Names {
    Names::parse(
        "orders.shop 240.240.1.2\norders.shop fd69::f0f0:102\nsix.lab fd00::6\nfour.lab 240.0.0.4\n",
    )
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    question
}

fn ask(question: &Message) -> Message {
    let said = answer(&question.to_vec().unwrap(), &names()).unwrap();
    assert!(said.len() <= 512);
    let said = Message::from_vec(&said).unwrap();
    assert_eq!((said.metadata.id, said.metadata.message_type), (7, MessageType::Response));
    assert_eq!(said.queries, question.queries, "the question is repeated");
    said
}

#[test]
fn names_of_the_mesh_have_their_addresses_and_others_are_told_apart() {
    use RecordType as T;
    use ResponseCode as C;
    let cases = [
        ("orders.shop.mesh.", T::A, C::NoError, Some("240.240.1.2")),
        ("ORDERS.Shop.MESH.", T::A, C::NoError, Some("240.240.1.2")),
        ("orders.shop.mesh.", T::ANY, C::NoError, Some("240.240.1.2 fd69::f0f0:102")),
        ("orders.shop.mesh.", T::AAAA, C::NoError, Some("fd69::f0f0:102")),
        ("four.lab.mesh.", T::AAAA, C::NoError, None),
        ("orders.shop.mesh.", T::TXT, C::NoError, None),
        ("six.lab.mesh.", T::AAAA, C::NoError, Some("fd00::6")),
        ("six.lab.mesh.", T::A, C::NoError, None),
        ("shop.mesh.", T::A, C::NoError, None),
        ("mesh.", T::A, C::NoError, None),
        ("payments.shop.mesh.", T::A, C::NXDomain, None),
        ("a.orders.shop.mesh.", T::A, C::NXDomain, None),
        (r"orders\.shop.mesh.", T::A, C::NXDomain, None),
        ("lab2.mesh.", T::A, C::NXDomain, None),
        ("orders.shop.", T::A, C::Refused, None),
        ("orders.shop.amesh.", T::A, C::Refused, None),
        (r"a\.mesh.", T::A, C::Refused, None),
        ("mesh.example.com.", T::A, C::Refused, None),
        (".", T::A, C::Refused, None),
    ];
    for (name, kind, code, addresses) in cases {
        let said = ask(&question(name, kind));
        let told: Vec<String> = said.answers.iter().map(|r| r.data.to_string()).collect();
        let told = (said.metadata.response_code, told.join(" "));
        assert_eq!(told, (code, addresses.unwrap_or_default().to_owned()), "{name} {kind}");
        let ours = code != C::Refused;
        assert_eq!(said.metadata.authoritative, ours, "{name}");
        // What is not there is so for as long as the SOA says.
        let negative = ours && addresses.is_none();
        let soa = said.authorities.first().map(|r| (r.record_type(), r.ttl, r.name.to_ascii()));
        let wanted = negative.then(|| (T::SOA, NEGATIVE_TTL, "mesh.".to_owned()));
        assert_eq!(soa, wanted, "{name} {kind}");
    }
}

#[test]
fn the_domain_itself_is_there() {
    let said = ask(&question("mesh.", RecordType::SOA));
    assert_eq!(said.answers.first().unwrap().record_type(), RecordType::SOA);
    assert!(said.metadata.recursion_desired && !said.metadata.recursion_available);
}

#[test]
fn what_nobody_does_is_refused() {
    let name = "orders.shop.mesh.";
    let mut update = question(name, RecordType::A);
    update.metadata.op_code = OpCode::Status;
    assert_eq!(ask(&update).metadata.response_code, ResponseCode::NotImp);
    let mut chaos = question(name, RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask(&chaos).metadata.response_code, ResponseCode::Refused);
    let mut many = question(name, RecordType::A).to_vec().unwrap();
    for count in [[0, 0], [0, 2], [255, 255]] {
        many[QUESTIONS].copy_from_slice(&count);
        let said = Message::from_vec(&answer(&many, &names()).unwrap()).unwrap();
        assert_eq!((said.metadata.id, said.metadata.response_code), (7, ResponseCode::FormErr));
    }
    let mut response = question(name, RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(answer(&response.to_vec().unwrap(), &names()), None, "two would talk for ever");
}

#[test]
fn edns_is_answered_with_edns() {
    let mut modern = question("orders.shop.mesh.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0);
    modern.set_edns(edns.clone());
    assert_eq!(ask(&modern).edns.unwrap().max_payload(), PAYLOAD);
    edns.set_version(1);
    modern.set_edns(edns);
    // BADVERS; another code has the same number.
    assert_eq!(u16::from(ask(&modern).metadata.response_code), 16);
    assert!(ask(&question("orders.shop.mesh.", RecordType::A)).edns.is_none());
}

#[test]
fn half_a_question_hears_so() {
    let whole = question("orders.shop.mesh.", RecordType::A).to_vec().unwrap();
    let said = answer(&whole[..whole.len() - 3], &names()).unwrap();
    let said = Message::from_vec(&said).unwrap();
    assert_eq!((said.metadata.id, said.metadata.response_code), (7, ResponseCode::FormErr));
    assert_eq!(answer(&[7], &names()), None);
    assert_eq!(answer(&vec![0; LONGEST + 1], &names()), None);
}

proptest! {
    #[test]
    fn no_bytes_panic_and_no_answer_is_long(bytes in proptest::collection::vec(0u8.., 0..600)) {
        let said = answer(&bytes, &names());
        prop_assert!(said.is_none_or(|said| said.len() <= bytes.len() + 512));
    }
}
