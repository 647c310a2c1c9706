//! Envelopes: the FlatBuffers tables of cold requests.
//!
//! Verified once, with tight limits; what comes out of `read` is read without further checks.

use flatbuffers::{FlatBufferBuilder, Follow, Verifiable, VerifierOptions};

use crate::batch::padded;
use crate::limits::ENVELOPE_BYTES_MAX;

/// Tables that one envelope may hold: a list of topics needs two each, one of them for settings, and one for the list.
const TABLES_MAX: usize = crate::limits::TOPICS_PER_LIST_MAX * 2 + 8;
/// How deep tables and vectors may lie in each other: list, its vector, a topic, its settings.
const DEPTH_MAX: usize = 4;

/// The envelope does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("envelope does not verify")]
pub struct EnvelopeError;

/// Verifies an envelope and gives its root table.
///
/// # Errors
/// When any offset, length, alignment, string or nesting in it is wrong.
pub fn read<'a, T>(bytes: &'a [u8]) -> Result<T::Inner, EnvelopeError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    let options = VerifierOptions {
        max_depth: DEPTH_MAX,
        max_tables: TABLES_MAX,
        max_apparent_size: ENVELOPE_BYTES_MAX,
        ..VerifierOptions::default()
    };
    flatbuffers::root_with_opts::<T>(&options, bytes).map_err(|_| EnvelopeError)
}

/// Finishes an envelope with its root and pads it to 8 bytes, appending it to `out`; returns its length.
pub fn finish_into<T>(
    builder: &mut FlatBufferBuilder<'_>,
    root: flatbuffers::WIPOffset<T>,
    out: &mut Vec<u8>,
) -> usize {
    builder.finish_minimal(root);
    let start = out.len();
    out.extend_from_slice(builder.finished_data());
    let length = padded(out.len() - start);
    out.resize(start + length, 0);
    builder.reset();
    length
}
