//! Forebay's wire and batch format.
//!
//! A frame is a fixed header, an optional FlatBuffers envelope and a raw payload; a payload is zero or more
//! batches; a batch is a fixed header, a record index and one data area. `docs/PROTOCOL.md` and
//! `docs/FORMAT.md` draw every byte. This crate does no I/O, reads no clock, and never panics on foreign bytes:
//! every parser returns a typed view or a small `Copy` error.
#![deny(unsafe_code)]

pub mod batch;
pub mod crc;
pub mod envelope;
pub mod frame;
pub mod ids;
pub mod key_hash;
pub mod limits;
pub mod status;

/// What `flatc` makes of `schema/wire.fbs`; `generate.sh` remakes it. The only place of this crate with `unsafe`.
#[allow(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    missing_docs,
    missing_debug_implementations,
    unused_imports,
    unreachable_pub,
    unused_qualifications,
    mismatched_lifetime_syntaxes,
    elided_lifetimes_in_paths,
    non_snake_case,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::unwrap_used,
    clippy::ptr_as_ptr,
    clippy::too_many_lines,
    clippy::use_self,
    rustdoc::all
)]
#[rustfmt::skip]
#[path = "generated/wire_generated.rs"]
mod generated;

pub use generated::forebay::wire;
