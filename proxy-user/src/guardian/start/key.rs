//! The pair's secret: 32 random bytes as hex in a file that only its owner may read, and the keys
//! derived from it, one for each use.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use snow::params::HashChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

use super::super::fault::Fault;
use crate::control::message::Secret;

/// The pair's secret.
#[derive(Debug, Clone)]
pub(in crate::guardian) struct PairKey(Secret<32>);

impl PairKey {
    /// Reads a key file.
    pub(in crate::guardian) fn read(path: &Path) -> Result<Self, Fault> {
        let show = path.display();
        let problem = |what: String| Fault::Usage(format!("key file {show}: {what}"));
        let meta = fs::metadata(path).map_err(|error| {
            problem(format!("{error}\n  hint: make it with `tandem keygen {show}`"))
        })?;
        if meta.permissions().mode() & 0o077 != 0 {
            let hint = format!("hint: chmod 600 {show}");
            return Err(problem(format!("others may read it\n  {hint}")));
        }
        let text = fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
        let key = unhex(text.trim()).ok_or_else(|| {
            problem("not a key (64 hex digits)\n  hint: make one with `tandem keygen`".to_owned())
        })?;
        Ok(Self(Secret(key)))
    }

    /// As it was kept.
    pub(in crate::guardian) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Secret(bytes)))
    }

    /// To be kept.
    pub(in crate::guardian) fn bytes(&self) -> &[u8] {
        &self.0.0
    }

    /// A random key, for a node without a peer.
    pub(in crate::guardian) fn random() -> Result<Self, Fault> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| Fault::of("random bytes", error))?;
        Ok(Self(Secret(bytes)))
    }

    /// The key for one use: BLAKE2s as HMAC of the use's name under the secret.
    pub(in crate::guardian) fn derive(&self, label: &str) -> Secret<32> {
        let mut out = [0; 32];
        if let Some(mut hash) = DefaultResolver.resolve_hash(&HashChoice::Blake2s) {
            hash.hmac(&self.0.0, label.as_bytes(), &mut out);
        }
        Secret(out)
    }

    /// Half of a derived key, for the keyed hash that places items.
    pub(in crate::guardian) fn derive_short(&self, label: &str) -> Secret<16> {
        let mut out = [0; 16];
        out.copy_from_slice(&self.derive(label).0[..16]);
        Secret(out)
    }
}

/// Writes a new key; refuses to overwrite one.
pub(in crate::guardian) fn keygen(path: &Path) -> Result<String, Fault> {
    let key = PairKey::random()?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Fault::Usage(format!("{} exists already; remove it first", path.display()))
        }
        _ => Fault::file("cannot make", path, error),
    })?;
    let text = format!("{}\n", hex(&key.0.0));
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| Fault::file("cannot write", path, error))?;
    Ok(format!("wrote {}: copy it to both nodes and keep it secret", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut key = [0; 32];
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(key)
}
