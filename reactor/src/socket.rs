//! The few things that are done to a socket outside the ring.
//!
//! Sockets block: on a socket with `O_NONBLOCK` the kernel answers `EAGAIN` instead of waiting, and a long
//! send would come back in pieces. Sends go out without delay: who wants larger packets gathers them before
//! the send.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use socket2::SockRef;

/// Connects, waiting for the answer, and turns delayed sending off. For `Reactor::add_socket`.
///
/// # Errors
/// What `connect(2)` said.
pub fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream.into())
}

/// Turns delayed sending off. Other sockets than TCP do not have it, and need no answer.
pub(crate) fn send_without_delay(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).set_tcp_nodelay(true);
}

/// Ends both directions at once: operations that wait on the socket end. A socket that has lost its peer
/// already answers with an error, which changes nothing.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
}

/// Whether operations on the descriptor wait instead of answering `EAGAIN`.
pub(crate) fn is_blocking(descriptor: impl AsFd) -> bool {
    let descriptor = descriptor.as_fd().as_raw_fd();
    // SAFETY: reads the flags of a descriptor that is borrowed, so open; no memory is involved.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn connected_socket_blocks_and_does_not_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = connect(listener.local_addr().unwrap()).unwrap();
        assert!(is_blocking(&socket));
        let stream = TcpStream::from(socket);
        assert!(stream.nodelay().unwrap());
        stream.set_nonblocking(true).unwrap();
        assert!(!is_blocking(&stream));
    }
}
