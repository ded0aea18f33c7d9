//! A field that was once on the wire keeps its number, type and name.
//!
//! `wire.lock` holds one line per field, enum value and method that has ever
//! been released. Lines are only added: run with `ISTHMUS_WIRE_LOCK=write` to
//! append what is new.

use std::{collections::BTreeSet, fs, path::Path};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto, field_descriptor_proto::Label,
};

const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/wire.lock");

fn compiled() -> FileDescriptorSet {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files: Vec<_> = fs::read_dir(root.join("isthmus/v1"))
        .expect("proto folder")
        .map(|entry| format!("isthmus/v1/{}", entry.expect("entry").file_name().display()))
        .collect();
    protox::compile(files, [root]).expect("the .proto files compile")
}

fn message_lines(message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    for field in &message.field {
        lines.insert(field_line(message.name(), field));
    }
    for nested in &message.nested_type {
        message_lines(nested, lines);
    }
}

fn field_line(message: &str, field: &FieldDescriptorProto) -> String {
    let kind = match field.type_name() {
        "" => format!("{:?}", field.r#type()).to_lowercase(),
        name => name.to_owned(),
    };
    let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
    format!("field {message}.{} = {} {repeated}{kind}", field.name(), field.number())
}

fn enum_lines(values: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &values.value {
        lines.insert(format!("value {}.{} = {}", values.name(), value.name(), value.number()));
    }
}

fn service_lines(service: &ServiceDescriptorProto, lines: &mut BTreeSet<String>) {
    for method in &service.method {
        lines.insert(format!(
            "method {}.{} {}{} -> {}{}",
            service.name(),
            method.name(),
            if method.client_streaming() { "stream " } else { "" },
            method.input_type(),
            if method.server_streaming() { "stream " } else { "" },
            method.output_type(),
        ));
    }
}

fn wire() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in compiled().file {
        file.message_type.iter().for_each(|message| message_lines(message, &mut lines));
        file.enum_type.iter().for_each(|values| enum_lines(values, &mut lines));
        file.service.iter().for_each(|service| service_lines(service, &mut lines));
    }
    lines
}

#[test]
fn nothing_on_the_wire_changed_or_vanished() {
    let now = wire();
    let locked: BTreeSet<String> =
        fs::read_to_string(LOCK).unwrap_or_default().lines().map(str::to_owned).collect();
    let broken: Vec<_> = locked.difference(&now).collect();
    assert!(broken.is_empty(), "breaking changes, old peers send or expect: {broken:#?}");
    if std::env::var("ISTHMUS_WIRE_LOCK").as_deref() == Ok("write") {
        let text: Vec<_> = now.union(&locked).map(String::as_str).collect();
        fs::write(LOCK, text.join("\n") + "\n").expect("wire.lock is writable");
        return;
    }
    let added: Vec<_> = now.difference(&locked).collect();
    assert!(
        added.is_empty(),
        "not in wire.lock yet, rerun with ISTHMUS_WIRE_LOCK=write: {added:#?}"
    );
}

#[test]
fn value_zero_of_every_enum_is_unspecified() {
    for file in compiled().file {
        for values in &file.enum_type {
            let zero = values.value.iter().find(|value| value.number() == 0).expect("value 0");
            assert!(zero.name().ends_with("_UNSPECIFIED"), "{}.{}", values.name(), zero.name());
        }
    }
}
