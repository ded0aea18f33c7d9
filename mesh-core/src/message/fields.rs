//! Header fields in order, in one block of memory.
//!
//! The block holds each field as HTTP/1 writes it (`name: value\r\n`), so
//! that fields nobody touched are written, or sent to another proxy, with one
//! copy. Names keep their case and are compared without it.

use std::fmt;

use super::known::{Known, KnownSet};

/// `: ` between name and value.
const COLON: usize = 2;
/// `\r\n` after a value.
const END: usize = 2;

/// Where a field is in the block.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u32,
    name: u32,
    value: u32,
    known: Option<Known>,
}

impl Entry {
    fn name(self, block: &[u8]) -> &[u8] {
        &block[self.start as usize..][..self.name as usize]
    }

    fn value(self, block: &[u8]) -> &[u8] {
        &block[self.start as usize + self.name as usize + COLON..][..self.value as usize]
    }

    fn end(self) -> usize {
        self.start as usize + self.name as usize + COLON + self.value as usize + END
    }
}

fn span(length: usize) -> u32 {
    u32::try_from(length).expect("heads are limited far below 4 GiB")
}

/// A section of a head that [`Fields::copy_section`] has copied.
#[derive(Debug, Clone, Copy)]
pub struct CopiedSection {
    start: usize,
}

/// Header fields. Their number and size are limited by whoever fills it.
#[derive(Clone, Default)]
pub struct Fields {
    block: Vec<u8>,
    entries: Vec<Entry>,
    known: KnownSet,
}

/// A name that is no token or a value with a control character (RFC 9110
/// sections 5.1, 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidField {
    /// The name.
    #[error("a field name is not a token")]
    Name,
    /// The value.
    #[error("a field value has a control character or white space around it")]
    Value,
}

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// No fields any more; the memory is kept.
    pub fn clear(&mut self) {
        self.block.clear();
        self.entries.clear();
        self.known = KnownSet::EMPTY;
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size of all fields as HTTP/1 writes them.
    pub fn bytes(&self) -> usize {
        let size = |entry: &Entry| entry.end() - entry.start as usize;
        self.entries.iter().map(size).sum()
    }

    /// What memory is kept: gives back what one large message has left.
    pub fn shrink_to(&mut self, bytes: usize) {
        self.block.shrink_to(bytes);
    }

    /// Appends a field that has been checked: from a parser, from types of the
    /// `http` crate, or written in this program. For all others there is
    /// [`Fields::try_push`]; what is not a field here breaks messages apart.
    /// Returns the name's id.
    pub fn push(&mut self, name: &str, value: &[u8]) -> Option<Known> {
        debug_assert!(is_name(name.as_bytes()) && is_value(value), "{name}: {value:?}");
        let known = Known::of(name.as_bytes());
        let entry = self.append(name.as_bytes(), value, known);
        self.note(known);
        self.entries.push(entry);
        known
    }

    /// Copies a section of a head, whose fields are then named one by one with
    /// [`Fields::push_copied`]; what is not named is never seen again.
    pub fn copy_section(&mut self, section: &[u8]) -> CopiedSection {
        let start = self.block.len();
        self.block.extend_from_slice(section);
        CopiedSection { start }
    }

    /// [`Fields::push`] of what is at `at` in a copied section, where it is
    /// exactly `name: value\r\n`; `name` and `value` are the lengths.
    pub fn push_copied(
        &mut self,
        section: CopiedSection,
        at: usize,
        name: usize,
        value: usize,
    ) -> Option<Known> {
        let mut entry = Entry {
            start: span(section.start + at),
            name: span(name),
            value: span(value),
            known: None,
        };
        entry.known = Known::of(entry.name(&self.block));
        debug_assert!(is_name(entry.name(&self.block)) && is_value(entry.value(&self.block)));
        debug_assert_eq!(&self.block[section.start + at + name..][..COLON], b": ");
        debug_assert_eq!(&self.block[..entry.end()][entry.end() - END..], b"\r\n");
        self.note(entry.known);
        self.entries.push(entry);
        entry.known
    }

    /// [`Fields::push`] of a known name, in lower case.
    pub fn push_known(&mut self, name: Known, value: &[u8]) {
        self.push(name.name(), value);
    }

    /// Appends a field if it is one.
    pub fn try_push(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        let name = std::str::from_utf8(name).map_err(|_| InvalidField::Name)?;
        if !is_name(name.as_bytes()) {
            return Err(InvalidField::Name);
        }
        if !is_value(value) {
            return Err(InvalidField::Value);
        }
        self.push(name, value);
        Ok(())
    }

    fn append(&mut self, name: &[u8], value: &[u8], known: Option<Known>) -> Entry {
        let start = self.block.len();
        self.block.extend_from_slice(name);
        self.block.extend_from_slice(b": ");
        self.block.extend_from_slice(value);
        self.block.extend_from_slice(b"\r\n");
        Entry { start: span(start), name: span(name.len()), value: span(value.len()), known }
    }

    fn insert(&mut self, at: usize, entry: Entry) {
        self.note(entry.known);
        self.entries.insert(at, entry);
    }

    fn note(&mut self, known: Option<Known>) {
        if let Some(known) = known {
            self.known = self.known.with(KnownSet::of(&[known]));
        }
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|&entry| self.field(entry))
    }

    /// All fields in order, each with the id of its name.
    pub fn iter_known(&self) -> impl Iterator<Item = (Option<Known>, &str, &[u8])> {
        self.entries.iter().map(|&entry| {
            let (name, value) = self.field(entry);
            (entry.known, name, value)
        })
    }

    fn field(&self, entry: Entry) -> (&str, &[u8]) {
        let name = std::str::from_utf8(entry.name(&self.block)).expect("names are ASCII");
        (name, entry.value(&self.block))
    }

    /// Which known names there are.
    #[inline]
    pub fn known_names(&self) -> KnownSet {
        self.known
    }

    /// Whether there is a field of this name.
    #[inline]
    pub fn has(&self, name: Known) -> bool {
        self.known.has(name)
    }

    /// The first value of a known name.
    #[inline]
    pub fn known(&self, name: Known) -> Option<&[u8]> {
        if !self.known.has(name) {
            return None;
        }
        self.all_known(name).next()
    }

    /// All values of a known name, in order.
    pub fn all_known(&self, name: Known) -> impl Iterator<Item = &[u8]> {
        let wanted = move |entry: &&Entry| entry.known == Some(name);
        self.entries.iter().filter(wanted).map(|entry| entry.value(&self.block))
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// All values of a name, in order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let known = Known::of(name.as_bytes());
        let of_name = move |entry: &&Entry| self.is_named(**entry, known, name);
        self.entries.iter().filter(of_name).map(|entry| entry.value(&self.block))
    }

    /// `Mesh` is many names, all others are one.
    fn is_named(&self, entry: Entry, known: Option<Known>, name: &str) -> bool {
        entry.known == known
            && (known.is_some_and(|known| known != Known::Mesh)
                || entry.name(&self.block).eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Gives the name this one value, at the place of its first.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        debug_assert!(is_name(name.as_bytes()) && is_value(value), "{name}: {value:?}");
        let known = Known::of(name.as_bytes());
        let mut place = None;
        if known.is_none_or(|known| self.has(known)) {
            place = self.entries.iter().position(|entry| self.is_named(*entry, known, name));
        }
        let Some(place) = place else {
            self.push(name, value);
            return;
        };
        self.remove(name);
        let entry = self.append(name.as_bytes(), value, known);
        self.insert(place, entry);
    }

    /// Adds an element to a comma-separated list, which becomes one field at
    /// the place of its first (RFC 9110 section 5.3).
    pub fn append_element(&mut self, name: &str, element: &[u8]) {
        debug_assert!(is_value(element), "{name}: {element:?}");
        let known = Known::of(name.as_bytes());
        let named = |fields: &Self, entry: &Entry| fields.is_named(*entry, known, name);
        let Some(place) = self.entries.iter().position(|entry| named(self, entry)) else {
            self.push(name, element);
            return;
        };
        let mut joined = self.append(name.as_bytes(), b"", known);
        self.block.truncate(self.block.len() - END);
        for index in place..self.entries.len() {
            let entry = self.entries[index];
            if named(self, &entry) && entry.value > 0 {
                let value = entry.start as usize + entry.name as usize + COLON;
                self.block.extend_from_within(value..value + entry.value as usize);
                self.block.extend_from_slice(b", ");
            }
        }
        self.block.extend_from_slice(element);
        let value = self.block.len() - (joined.start as usize + joined.name as usize + COLON);
        joined.value = span(value);
        self.block.extend_from_slice(b"\r\n");
        self.remove(name);
        self.insert(place, joined);
    }

    /// Removes all fields of a name; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        match Known::of(name.as_bytes()) {
            Some(known) if known != Known::Mesh => self.remove_known(known),
            _ => self.retain(|present, _| !present.eq_ignore_ascii_case(name)),
        }
    }

    /// Removes all fields of a known name; whether there was one.
    pub fn remove_known(&mut self, name: Known) -> bool {
        self.remove_set(KnownSet::of(&[name]))
    }

    /// Removes all fields of these names; whether there was one.
    pub fn remove_set(&mut self, names: KnownSet) -> bool {
        let any = self.known.has_any(names);
        if any {
            self.entries.retain(|entry| entry.known.is_none_or(|known| !names.has(known)));
            self.known = self.known.without(names);
        }
        any
    }

    /// Keeps the fields for which `keep` says so; whether any went.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &[u8]) -> bool) -> bool {
        let before = self.entries.len();
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|&entry| {
            let (name, value) = self.field(entry);
            keep(name, value)
        });
        self.entries = entries;
        let names = self.entries.iter().filter_map(|entry| entry.known);
        self.known = names.fold(KnownSet::EMPTY, |set, name| set.with(KnownSet::of(&[name])));
        self.entries.len() < before
    }

    /// Lengths of all names and values, in order.
    pub(super) fn lengths(&self) -> impl Iterator<Item = (usize, usize)> {
        self.entries.iter().map(|entry| (entry.name as usize, entry.value as usize))
    }

    /// Appends a block of fields that somebody else has written, `lengths`
    /// being those of names and values. Whether the block was exactly that.
    pub(super) fn read_block(
        &mut self,
        block: &[u8],
        mut lengths: impl FnMut() -> Option<(usize, usize)>,
    ) -> Result<bool, InvalidField> {
        let copied = self.copy_section(block);
        let mut at = 0;
        while let Some((name, value)) = lengths() {
            let field = block.get(at..).and_then(|rest| rest.get(..name + COLON + value + END));
            let Some(field) = field else { return Ok(false) };
            let (colon, end) = (&field[name..name + COLON], &field[field.len() - END..]);
            if colon != b": " || end != b"\r\n" {
                return Ok(false);
            }
            if !is_name(&field[..name]) {
                return Err(InvalidField::Name);
            }
            if !is_value(&field[name + COLON..][..value]) {
                return Err(InvalidField::Value);
            }
            self.push_copied(copied, at, name, value);
            at += field.len();
        }
        Ok(at == block.len())
    }

    /// Writes `name: value\r\n` of all fields but those named in `skip`.
    pub fn write_without(&self, skip: KnownSet, out: &mut Vec<u8>) {
        let skipping = self.known.has_any(skip);
        let (mut from, mut to) = (0, 0);
        for entry in &self.entries {
            if skipping && entry.known.is_some_and(|known| skip.has(known)) {
                continue;
            }
            if entry.start as usize != to {
                out.extend_from_slice(&self.block[from..to]);
                from = entry.start as usize;
            }
            to = entry.end();
        }
        out.extend_from_slice(&self.block[from..to]);
    }
}

/// A token (RFC 9110 section 5.6.2).
pub fn is_name(name: &[u8]) -> bool {
    // Without an early end: faster on names of usual length.
    !name.is_empty() && name.iter().fold(true, |all, &byte| all & TOKEN[usize::from(byte)])
}

static TOKEN: [bool; 256] = byte_table(b"!#$%&'*+-.^_`|~");

/// Letters, digits and `symbols`.
pub(super) const fn byte_table(symbols: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < symbols.len() {
        table[symbols[index] as usize] = true;
        index += 1;
    }
    table
}

/// No control characters but tabs inside, no white space around (RFC 9110
/// section 5.5).
pub fn is_value(value: &[u8]) -> bool {
    let is_white = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let is_control = |byte: u8| ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f);
    // Without an early end, so that the compiler takes many bytes at once.
    let control = value.iter().fold(false, |any, &byte| any | is_control(byte));
    !control && !is_white(value.first()) && !is_white(value.last())
}

/// The same fields in the same order; the case of names does not matter.
impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        let same =
            |((a, x), (b, y)): ((&str, &[u8]), (&str, &[u8]))| a.eq_ignore_ascii_case(b) && x == y;
        self.len() == other.len() && self.iter().zip(other.iter()).all(same)
    }
}

impl Eq for Fields {}

/// Without what authenticates a user.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SECRET: KnownSet = KnownSet::of(&[
            Known::Authorization,
            Known::ProxyAuthorization,
            Known::Cookie,
            Known::SetCookie,
        ]);
        let mut map = f.debug_map();
        for (known, name, value) in self.iter_known() {
            let secret = known.is_some_and(|known| SECRET.has(known));
            let text = if secret { "***".into() } else { String::from_utf8_lossy(value) };
            map.entry(&name, &text);
        }
        map.finish()
    }
}

impl<'a> FromIterator<(&'a str, &'a [u8])> for Fields {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a [u8])>>(pairs: I) -> Self {
        let mut fields = Self::new();
        for (name, value) in pairs {
            fields.push(name, value);
        }
        fields
    }
}

#[cfg(test)]
mod tests;
