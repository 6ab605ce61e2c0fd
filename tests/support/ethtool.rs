//! The one device setting that native XDP on veth needs: GRO on the far end, which gives that end
//! a NAPI context, without which transmitted frames vanish.

use std::ffi::c_void;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

const ETHTOOL_SGRO: u32 = 0x2c;

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

#[repr(C)]
struct Ifreq {
    name: [libc::c_char; libc::IFNAMSIZ],
    data: *mut c_void,
    padding: [u8; 16],
}

/// Switches generic receive offload on, on `interface` of the calling thread's namespace.
///
/// # Errors
/// The ioctl's error, or a name longer than the kernel's 15 bytes.
pub fn gro_on(interface: &str) -> io::Result<()> {
    let mut value = EthtoolValue { command: ETHTOOL_SGRO, data: 1 };
    let mut request =
        Ifreq { name: [0; libc::IFNAMSIZ], data: (&raw mut value).cast(), padding: [0; 16] };
    if interface.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: `request` is an ifreq whose name is terminated and whose data points at a live
    // ethtool_value; the kernel reads both and keeps neither.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
