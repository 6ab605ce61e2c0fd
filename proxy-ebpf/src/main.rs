//! The XDP program: parse, decide, act, and nothing else.
//!
//! The verdict is `proxy_common::decide`, the very function that user space tests and fuzzes. Here
//! are only its eyes (the frame, bounded by `data_end`; the maps) and its hands.
#![no_std]
#![no_main]

mod frame;
mod maps;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use proxy_common::abi::{Conflict, Reason};
use proxy_common::{ArpReply, Verdict, decide};

use frame::Packet;
use maps::Maps;

/// Entry. `frags`: jumbo frames in several buffers are taken too; heads are in the first.
#[xdp(frags)]
pub fn tandem(ctx: XdpContext) -> u32 {
    let mut packet = Packet::of(&ctx);
    let verdict = decide(&packet, &Maps::of(&ctx));
    maps::count(verdict.reason());
    maps::remember(&verdict);
    match verdict {
        Verdict::Pass(_) => XDP_PASS,
        Verdict::Drop(_) | Verdict::Withhold(_) => XDP_DROP,
        Verdict::Conflict(conflict) => tell(conflict),
        Verdict::ArpReply(reply) => send(&reply, &mut packet),
    }
}

#[inline(always)]
fn tell(conflict: Conflict) -> u32 {
    match maps::CONFLICTS.reserve::<Conflict>(0) {
        Some(mut record) => {
            record.write(conflict);
            record.submit(0);
        }
        None => maps::count(Reason::EventLost),
    }
    XDP_PASS
}

#[inline(always)]
fn send(reply: &ArpReply, packet: &mut Packet) -> u32 {
    if reply.write(packet).is_none() {
        return XDP_ABORTED;
    }
    match reply.vip.tx_ifindex {
        0 => XDP_TX,
        // SAFETY: a helper without pointers; flags 0.
        ifindex => unsafe { bpf_redirect(ifindex, 0) as u32 },
    }
}

/// Nothing here panics; the compiler wants to be sure.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
