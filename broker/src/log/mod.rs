//! A partition's log. In this version all of it lies in memory, in the tail, and in the journal; segments take the
//! written part over later, congruent to what the tail holds.

mod tail;

pub use tail::{Cursor, ReadLimit, Run, Tail};
