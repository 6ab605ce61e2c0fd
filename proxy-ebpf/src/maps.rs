//! The maps, named and sized by `proxy_common::abi`, and the verdict's view of them.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::XdpContext;
use proxy_common::abi::{self, Askers, Control, Ipv4, Reason, Vip};
use proxy_common::{Tables, Verdict};

#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
static ANSWERS: Array<u32> = Array::with_max_entries(abi::VIPS_MAX, 0);
#[map]
static VIPS: HashMap<Ipv4, Vip> = HashMap::with_max_entries(abi::VIPS_MAX, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);
#[map]
pub static CONFLICTS: RingBuf = RingBuf::with_byte_size(abi::CONFLICT_RING_BYTES, 0);

#[map]
static ASKERS: Array<Askers> = Array::with_max_entries(1, 0);

/// Remembers who asked for a VIP.
#[inline(always)]
pub fn remember(verdict: &Verdict) {
    // The clock is read for a question only.
    let Some(mut asker) = verdict.asker(0) else { return };
    if let Some(askers) = ASKERS.get_ptr_mut(0) {
        // SAFETY: a helper without arguments.
        asker.at_ns = unsafe { bpf_ktime_get_ns() };
        // SAFETY: a map value, and `place` is below its length. Another CPU may write there too:
        // `Askers` says why that does no harm.
        unsafe { (*askers).0[Askers::place(asker.address)] = asker };
    }
}

/// Raises a counter.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: a map value of this CPU; XDP programs do not interrupt each other on it.
        unsafe { *counter += 1 };
    }
}

/// The maps and clocks as `decide` sees them.
pub struct Maps {
    ifindex: u32,
}

impl Maps {
    /// For the frame that the program was called for.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self { ifindex: ctx.ingress_ifindex() as u32 }
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn vip(&self, address: Ipv4) -> Option<Vip> {
        // SAFETY: entries are added while nobody answers for them and never removed.
        unsafe { VIPS.get(address) }.copied()
    }

    #[inline(always)]
    fn answers(&self, slot: u32) -> bool {
        ANSWERS.get(slot).is_some_and(|answers| *answers == 1)
    }

    #[inline(always)]
    fn control(&self) -> Control {
        CONTROL.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
}
