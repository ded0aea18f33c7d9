//! From and to the messages of `mesh-api`. One `TryFrom` per type; nothing
//! that came over a network reaches the rest of the crate unparsed.
