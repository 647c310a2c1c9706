//! What can be wrong with a connection, and with a request before it is sent.
//!
//! Both are small and `Copy`: text is made where it is shown. A `ConnectionError` ends the connection, a
//! `RequestError` changes nothing.

use protocol::frame::{FrameError, Opcode};

/// The peer is dead, or lies: the connection is at its end. What it said before stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// A frame header that cannot be followed.
    #[error("frame header: {0}")]
    Frame(#[from] FrameError),
    /// An opcode that this version does not know.
    #[error("opcode {0} is not known")]
    UnknownOpcode(u8),
    /// A status that this version does not know.
    #[error("status {0} is not known")]
    UnknownStatus(u16),
    /// A frame that only a client sends, or a push where an answer belongs.
    #[error("{0:?} is not what a broker sends")]
    UnexpectedFrame(Opcode),
    /// An envelope that does not verify, or a field of it that is out of bounds.
    #[error("the envelope of {0:?} lies")]
    Envelope(Opcode),
    /// An envelope or payload where none belongs, or none where one belongs.
    #[error("{0:?} carries what it should not, or lacks what it should carry")]
    Content(Opcode),
    /// An answer to something that was not asked, or was answered before.
    #[error("answer to request {0}, which is not open")]
    UnknownCorrelation(u64),
    /// An answer under another opcode or subject than the request's.
    #[error("answer under {answered:?} to a request under {asked:?}, or to another subject")]
    OtherAnswer {
        /// Of the request.
        asked: Opcode,
        /// Of the answer.
        answered: Opcode,
    },
    /// A delivery to a subscription that does not exist.
    #[error("delivery to subscription {0}, which does not exist")]
    UnknownSubscription(u64),
    /// A grant of `Hello` that cannot be worked with.
    #[error("the granted {0} is out of bounds")]
    Grant(&'static str),
    /// Nothing was heard for three heartbeat intervals, or no answer to `Hello` came.
    #[error("the broker is silent")]
    PeerSilent,
    /// More bytes were handed in than fit while events wait to be taken: the driver's mistake.
    #[error("more bytes than fit: take the events first")]
    NotDrained,
}

impl ConnectionError {
    /// Whether the peer broke the protocol, rather than fell silent.
    #[must_use]
    pub fn is_lie(self) -> bool {
        !matches!(self, Self::PeerSilent | Self::NotDrained)
    }
}

/// A request that was not made; the connection is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `Hello` is not answered yet.
    #[error("the broker has not answered Hello yet")]
    NotReady,
    /// The broker said that it goes away, or the connection failed.
    #[error("the connection is at its end")]
    Closing,
    /// The granted window has no room for it now; answers make room.
    #[error("the produce window is full")]
    WindowFull,
    /// Too many requests are unanswered, or wait for the socket.
    #[error("too many requests are unanswered")]
    TooMany,
    /// The frame would be longer than granted.
    #[error("the frame is longer than the broker grants")]
    FrameTooLarge,
    /// A name longer than any topic's.
    #[error("the name is longer than a topic's name can be")]
    NameTooLong,
    /// The subscription's id is 0 or in use on this connection.
    #[error("the subscription id is 0 or in use")]
    SubscriptionInUse,
}
