//! Deliberately broken variants, compiled in only with the feature `mutants`: the tests of the tests.
//!
//! The simulator switches one on for its own thread and must then find the loss that it causes.

use std::cell::Cell;

/// A way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Acknowledge what is written and not yet flushed.
    AckBeforeFlush,
    /// Start again with the epoch of the start before.
    ReuseEpoch,
}

thread_local! {
    static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Switches this thread to a mutant, or back with `None`.
pub fn set(mutant: Option<Mutant>) {
    ON.set(mutant);
}

/// Whether this thread runs the mutant.
#[must_use]
pub fn is_on(mutant: Mutant) -> bool {
    ON.get() == Some(mutant)
}
