//! The seam between the socket and the protocol: bytes in, bytes out. TLS fits here, and the
//! engines' own secure channel does. A layer never sees the worker, a protocol never sees a layer.

use std::fmt;

/// Why a layer gave the connection up; shown in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerError(pub String);

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LayerError {}

/// One connection's layer. Plain text written before the handshake is over is kept by the layer's
/// caller and offered again.
pub trait Layer: fmt::Debug {
    /// What this side says first, if it is the one that speaks first.
    ///
    /// # Errors
    /// The layer cannot begin.
    fn start(&mut self, wire_out: &mut Vec<u8>) -> Result<(), LayerError>;

    /// Takes received bytes; appends the plain text in them and what must be answered.
    ///
    /// # Errors
    /// The peer broke the layer's protocol or has the wrong key: close.
    fn open(
        &mut self,
        wire: &[u8],
        plain: &mut Vec<u8>,
        wire_out: &mut Vec<u8>,
    ) -> Result<(), LayerError>;

    /// Moves what may leave out of `plain` into `wire`; before the handshake is over, nothing.
    ///
    /// # Errors
    /// The channel is used up.
    fn seal(&mut self, plain: &mut Vec<u8>, wire: &mut Vec<u8>) -> Result<(), LayerError>;
}
