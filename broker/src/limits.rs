//! Every bound of the broker, with one line of why.
//!
//! The operator's choices (config) lie below these limits. A limit that depends on another is tied to it by a
//! `const` assert at the end.

use protocol::limits::{FRAME_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX};

/// Unit of direct I/O and of a journal block's padding.
pub const PAGE_BYTES: usize = 4096;

/// K: journal blocks sealed and not yet durable. Two to four writes in flight saturate one core here; recovery
/// uses the same number to tell a torn tail from rot.
pub const JOURNAL_BLOCKS_IN_FLIGHT_MAX: usize = 4;
/// Length at which a journal block is closed: one request within what block layers take in one piece.
pub const JOURNAL_BLOCK_BYTES: usize = 1 << 20;
/// Longest journal block: the largest frame's batches, headers, padding.
pub const JOURNAL_BLOCK_BYTES_MAX: usize = FRAME_BYTES_MAX + PAGE_BYTES;
/// Entries in one block: the low 16 bits of an LSN.
pub const JOURNAL_ENTRIES_PER_BLOCK_MAX: u32 = 65_535;
/// Bytes appended and not yet sealed into a block; beyond it producers get `Busy`.
pub const JOURNAL_PENDING_BYTES_MAX: usize = 64 << 20;
/// Blocks appended and not yet sealed.
pub const JOURNAL_BLOCKS_OPEN_MAX: usize = 256;
/// Space at the journal's end that appends leave to topic changes and markers, so that a full broker can be mended.
pub const JOURNAL_RESERVE_BYTES: u64 = 1 << 20;
/// Smallest and largest journal file.
pub const JOURNAL_FILE_BYTES_MIN: u64 = 2 << 20;
/// Default length of a journal file.
pub const JOURNAL_FILE_BYTES_DEFAULT: u64 = 64 << 20;
/// Fewest journal files: the one that is written, one that a checkpoint is freeing, and two between them.
pub const JOURNAL_FILES_MIN: u32 = 4;
/// A checkpoint begins when this part of the journal was written since the one before began: two of them are kept,
/// so half of the journal is used in the steady state and a quarter is left for the one under way.
pub const JOURNAL_CHECKPOINT_PART: u64 = 4;
/// Most journal files: file numbers stay small.
pub const JOURNAL_FILES_MAX: u64 = 16_384;
/// Default length of the whole journal.
pub const JOURNAL_BYTES_DEFAULT: u64 = 1 << 30;
/// Idle time after the last acknowledgement before a marker block records the durable LSN.
pub const JOURNAL_MARKER_IDLE_NS: u64 = 5_000_000;
/// Pause before a failed file preparation (disk full) is tried again.
pub const PREPARE_RETRY_NS: u64 = 5_000_000_000;
/// Read size of recovery's scan.
pub const RECOVERY_READ_BYTES: usize = 4 << 20;

/// Topics of one data directory.
pub const TOPICS_MAX: usize = 16_384;
/// Partitions of one shard: 8 KiB of memory for each idle one at most.
pub const PARTITIONS_MAX: usize = 65_536;
/// First chunk of a partition's tail; an idle partition with records holds no more.
pub const TAIL_CHUNK_BYTES_MIN: usize = 4 << 10;
/// Chunks double up to this.
pub const TAIL_CHUNK_BYTES_MAX: usize = 1 << 20;

/// First page of a segment's file: what it is.
pub const SEGMENT_HEADER_BYTES: u64 = PAGE_BYTES as u64;
/// Last pages of a sealed segment's file: its index.
pub const SEGMENT_FOOTER_BYTES: usize = 16 << 10;
/// Smallest segment that a topic may ask for, and the first step in which space is allocated.
pub const SEGMENT_BYTES_MIN: u64 = 256 << 10;
/// How many times as much space an open segment gets when a quarter of what it has is used.
pub const SPACE_GROWTH: u64 = 4;
/// Segments of topics that ask for nothing: few files for much data, and a fine enough grain for retention.
pub const SEGMENT_BYTES_DEFAULT: u64 = 128 << 20;
/// Largest segment: places in it fit into 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Segments of one shard: what a snapshot holds of them stays below 16 MiB.
pub const SEGMENTS_MAX: usize = 262_144;
/// Entries of a segment's index: what fits into its footer.
pub const INDEX_ENTRIES_MAX: usize = 1_000;
/// Bytes of a segment between two entries of its index, at least.
pub const INDEX_INTERVAL_BYTES_MIN: u64 = 64 << 10;
/// One write of write-behind: long writes hurt the commits beside them least.
pub const WRITE_BEHIND_BYTES: usize = 1 << 20;
/// Unwritten bytes of a partition that are worth a write of their own before a checkpoint asks for them.
pub const WRITE_BEHIND_BYTES_WORTHWHILE: u64 = 512 << 10;
/// Writes of one partition behind its tail that are in flight.
pub const WRITE_BEHIND_PER_PARTITION_MAX: usize = 4;
/// Bytes of write-behind in flight when the journal is a quarter full, or nothing is on its way to it; and when it is
/// half full, or memory is short. Below that commits have the disk to themselves: a short burst costs one write.
pub const WRITE_BEHIND_IN_FLIGHT_BYTES: [usize; 2] = [2 << 20, 8 << 20];
/// Unacknowledged requests for space of one shard; the others wait for their turn.
pub const ALLOCATIONS_IN_FLIGHT_MAX: usize = 256;
/// Partitions up to which a topic's creation makes their first segments too; larger ones make them when used.
pub const EAGER_PARTITIONS_MAX: u32 = 64;
/// Pause before space that could not be allocated is asked for again.
pub const SPACE_RETRY_NS: u64 = 500_000_000;
/// Partitions captured by a checkpoint in one turn.
pub const CAPTURE_PER_TURN_MAX: usize = 64;
/// Snapshot blocks being written.
pub const SNAPSHOT_WRITES_MAX: usize = 2;
/// Length of a new snapshot file; it doubles when half of it is needed.
pub const SNAPSHOT_BYTES_FIRST: u64 = 4 << 20;
/// Files that a checkpoint flushes one by one; more are flushed by one sync of the file system.
pub const FLUSHES_PER_CHECKPOINT_MAX: usize = 16;
/// One cold read.
pub const COLD_READ_BYTES: usize = 1 << 20;
/// A stream of a reader that takes nothing for so long is given to one that waits.
pub const COLD_IDLE_NS: u64 = 10_000_000;
/// Pause of readers that found no memory.
pub const STARVED_RETRY_NS: u64 = 2_000_000;
/// Readers behind the tails that have buffers at the same time; the others wait for their turn.
pub const COLD_STREAMS_MAX: usize = 32;
/// Time between two reads of the scrub: 8 MiB each second.
pub const SCRUB_INTERVAL_NS: u64 = 125_000_000;
/// Time between two rounds of the scrub.
pub const SCRUB_REST_NS: u64 = 600_000_000_000;
/// Removed segments whose files are being unlinked.
pub const REMOVALS_IN_FLIGHT_MAX: usize = 64;
/// How often retention looks at partitions, and at how many at a time.
pub const RETENTION_INTERVAL_NS: u64 = 200_000_000;
/// See `RETENTION_INTERVAL_NS`.
pub const RETENTION_PER_TURN_MAX: usize = 512;
/// How often compaction looks for something to do, when nothing is under way.
pub const COMPACT_INTERVAL_NS: u64 = 200_000_000;
/// Pause of compaction after a new segment could not be written: the disk is full, most likely.
pub const COMPACT_RETRY_NS: u64 = 30_000_000_000;
/// Keys that a compaction keeps in memory, some 40 bytes for each; no segment of a compacted topic gets more records.
pub const COMPACT_KEYS_MAX: usize = 700_000;
/// Segments that one compaction takes keys from, or rewrites.
pub const COMPACT_SOURCES_MAX: usize = 1_024;
/// Bytes of batches that one compaction takes keys from, or one segment.
pub const COMPACT_KEYS_BYTES_MAX: u64 = 4 << 30;
/// Small segments that are worth a compaction, however little they hold.
pub const COMPACT_SEGMENTS_WORTHWHILE: usize = 8;
/// One read or write of a compaction.
pub const COMPACT_IO_BYTES: usize = 1 << 20;
/// What a compaction reads and writes: about a tenth of a fast device, so that commits beside it are not hurt.
pub const COMPACT_BYTES_PER_SECOND_MAX: u64 = 64 << 20;
/// How long a record without a value is kept, so that readers hear of the deletion.
pub const TOMBSTONE_KEEP_MS: u64 = 24 * 3_600_000;

/// Connections of one shard.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Receive buffer of a connection; longer frames take one of their own from the budget.
pub const RECEIVE_BUFFER_BYTES: usize = 128 << 10;
/// Small answers of a connection that wait for its socket.
pub const CONTROL_BUFFER_BYTES: usize = 128 << 10;
/// Unsent small answers beyond which a connection is not read: the peer is not reading its answers.
pub const CONTROL_UNSENT_BYTES_MAX: usize = 32 << 10;
/// Requests of a connection that wait for their answer.
pub const REQUESTS_IN_FLIGHT_MAX: u32 = 1_024;
/// Default and largest window of produce bytes in flight of a connection.
pub const WINDOW_BYTES_DEFAULT: u32 = 4 << 20;
/// Answers up to this length go through the control buffer; longer ones take a buffer of their own.
pub const SMALL_ANSWER_BYTES_MAX: usize = 1_024;
/// Requests of a connection, other than produces, that wait for the journal.
pub const COLD_REQUESTS_IN_FLIGHT_MAX: u32 = 32;
/// Large answers (lists, descriptions) of a connection that wait for its socket.
pub const LARGE_ANSWERS_MAX: usize = 64;
/// Large answers beyond which a connection is not read: room is left for those of requests that wait.
pub const LARGE_ANSWERS_UNSENT_MAX: usize = 16;
/// Fetches of a connection that wait for its socket.
pub const FETCHES_PENDING_MAX: usize = 16;
/// Requests of all connections that wait for the journal.
pub const WAITERS_MAX: usize = 65_536;
/// Closed gates of a connection; beyond it the whole connection is one gate.
pub const GATES_PER_CONNECTION_MAX: usize = 64;
/// Subscriptions of one connection.
pub const SUBSCRIPTIONS_PER_CONNECTION_MAX: usize = 1_024;
/// Partition cursors of all subscriptions of one connection: about half a megabyte of memory.
pub const CURSORS_PER_CONNECTION_MAX: usize = 4 * PARTITIONS_PER_TOPIC_MAX as usize;
/// Tail bytes in flight of a connection, or one batch when that is longer.
pub const DELIVERY_IN_FLIGHT_BYTES_MAX: usize = 256 << 10;
/// Bytes that one subscription's partition may send before the next has its turn.
pub const DELIVERY_SLICE_BYTES: usize = 64 << 10;
/// Largest sum of credit, in records or bytes.
pub const CREDIT_MAX: i64 = 1 << 62;
/// An answer that does not leave for this long ends its connection.
pub const SEND_STALL_NS: u64 = 10_000_000_000;
/// A frame that is begun and not whole after this long ends its connection.
pub const FRAME_STALL_NS: u64 = 30_000_000_000;
/// A connection that has not said `Hello` after this long is closed.
pub const HELLO_TIMEOUT_NS: u64 = 10_000_000_000;
/// Default interval of heartbeats; three silent ones end a connection.
pub const HEARTBEAT_MS_DEFAULT: u32 = 5_000;
/// How long a connection that is told to go may take to read that and close.
pub const LEAVING_NS: u64 = 1_000_000_000;
/// Longest frame of a peer that has not been greeted: it fits into the ordinary buffer.
pub const GREETING_BYTES_MAX: u32 = 64 << 10;
/// Room in a frame for its header and the envelope of an answer, beside the longest batch.
pub const ANSWER_OVERHEAD_BYTES: usize = 4 << 10;
/// How often connections are looked at for time-outs.
pub const SWEEP_INTERVAL_NS: u64 = 100_000_000;
/// How long a shutdown waits for commits and sends before it closes what is left.
pub const SHUTDOWN_GRACE_NS: u64 = 5_000_000_000;

/// Completions handled in one turn.
pub const COMPLETIONS_PER_TURN_MAX: usize = 256;
/// Mails handled in one turn.
pub const MAIL_PER_TURN_MAX: usize = 64;
/// Operations that the reactor may have in flight: a receive and a send for each connection, and the disk's.
pub const OPERATIONS_MAX: usize = 2 * CONNECTIONS_MAX + 64;

/// Memory that tails leave to connections, blocks and answers, so that a full broker can still be asked and mended:
/// this part of the budget, at most `MEMORY_RESERVE_BYTES_MAX`.
pub const MEMORY_RESERVE_PART: usize = 8;
/// See `MEMORY_RESERVE_PART`.
pub const MEMORY_RESERVE_BYTES_MAX: usize = 64 << 20;
/// Default and smallest memory budget of a shard.
pub const MEMORY_BYTES_DEFAULT: u64 = 1 << 30;
/// See `MEMORY_BYTES_DEFAULT`.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;

const _: () = assert!(JOURNAL_BLOCK_BYTES.is_multiple_of(PAGE_BYTES));
const _: () = assert!(JOURNAL_PENDING_BYTES_MAX >= 4 * FRAME_BYTES_MAX);
// What is unsent, and the answer of everything that waits, always finds room.
const _: () = assert!(
    CONTROL_UNSENT_BYTES_MAX
        + 32 * (REQUESTS_IN_FLIGHT_MAX as usize)
        + SMALL_ANSWER_BYTES_MAX * (COLD_REQUESTS_IN_FLIGHT_MAX as usize)
        < CONTROL_BUFFER_BYTES
);
const _: () = assert!(LARGE_ANSWERS_UNSENT_MAX + (COLD_REQUESTS_IN_FLIGHT_MAX as usize) < LARGE_ANSWERS_MAX);
const _: () = assert!(GREETING_BYTES_MAX as usize <= RECEIVE_BUFFER_BYTES);
const _: () = assert!(JOURNAL_BLOCK_BYTES_MAX <= reactor::memory::BUFFER_BYTES_MAX);
const _: () = assert!(TAIL_CHUNK_BYTES_MIN == PAGE_BYTES);
// A frame alone has no more records: each has an entry of 24 bytes in its batch's index.
const _: () = assert!(COMPACT_KEYS_MAX * 24 >= FRAME_BYTES_MAX);
const _: () =
    assert!(COMPACT_IO_BYTES.is_multiple_of(PAGE_BYTES) && COMPACT_IO_BYTES >= SEGMENT_FOOTER_BYTES);
const _: () = assert!(PARTITIONS_MAX >= TOPICS_MAX);
const _: () = assert!(SEGMENTS_MAX >= 4 * PARTITIONS_MAX);
const _: () = assert!(WINDOW_BYTES_DEFAULT as usize <= JOURNAL_PENDING_BYTES_MAX);
