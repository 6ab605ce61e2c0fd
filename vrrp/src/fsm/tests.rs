//! The ledger of RFC 9568 §6.4 and §7.1: a positive and a negative test for each rule, on a
//! virtual clock; then the coupled mode.

mod coupled;
mod plain;

use super::*;
use crate::config::Vrid;

const INTERVAL_MS: u64 = 100;

/// 3 × 100 ms + (256 − 100) × 100 ms / 256, in microseconds.
const DOWN_US: u64 = 360_937;
const SKEW_US: u64 = 60_937;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 99, 0, last])
}

fn us(n: u64) -> Duration {
    Duration::from_micros(n)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn interval(ms: u16) -> AdvertInterval {
    AdvertInterval::from_centiseconds(ms / 10).unwrap()
}

/// Ours is 10.99.0.10 with priority 100.
fn config(mode: Mode) -> InstanceConfig {
    let source = ip(10);
    let vrid = Vrid::new(51).unwrap();
    InstanceConfig {
        mode,
        ..InstanceConfig::coupled(vrid, interval(INTERVAL_MS as u16), vec![ip(100)], source)
    }
}

/// An instance and its clock.
struct Bench {
    instance: Instance,
    now: Instant,
}

impl Bench {
    fn new(config: InstanceConfig) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an Instant has no other source")]
        let now = Instant::now();
        Self { instance: Instance::new(config).unwrap(), now }
    }

    fn started(config: InstanceConfig) -> Self {
        let mut bench = Self::new(config);
        bench.instance.startup(bench.now);
        bench.drain();
        bench
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.instance.poll_output()).collect()
    }

    /// Time passes; every deadline up to then fires at its time.
    fn pass(&mut self, time: Duration) -> Vec<Output> {
        let end = self.now + time;
        let mut all = Vec::new();
        while let Some(at) = self.instance.poll_timeout().filter(|at| *at <= end) {
            self.now = at;
            self.instance.handle_timeout(at);
            all.extend(self.drain());
            assert!(self.instance.poll_timeout().is_none_or(|next| next > at), "no progress");
        }
        self.now = end;
        all
    }

    /// Until the next deadline.
    fn left(&self) -> Option<Duration> {
        Some(self.instance.poll_timeout()? - self.now)
    }

    fn hear(&mut self, from: u8, priority: u8) -> Vec<Output> {
        self.hear_advert(from, &self.advert(priority)).unwrap()
    }

    fn hear_advert(&mut self, from: u8, advert: &Advert) -> Result<Vec<Output>, Refusal> {
        let group = self.instance.config.group();
        let bytes = advert.encode(ip(from), group, ChecksumKind::PseudoHeader).unwrap();
        self.hear_bytes(&Received::multicast(ip(from), 255, &bytes))
    }

    fn hear_bytes(&mut self, received: &Received<'_>) -> Result<Vec<Output>, Refusal> {
        self.instance.handle_advert(self.now, received).map(|()| self.drain())
    }

    /// An advert of our virtual router with another priority.
    fn advert(&self, priority: u8) -> Advert {
        let c = &self.instance.config;
        Advert {
            version: c.version,
            vrid: c.vrid,
            priority: Priority::new(priority),
            interval: c.interval,
            addresses: c.addresses.clone(),
            auth: c.auth,
        }
    }

    /// Short names, with what matters of the payload.
    fn names(&self, outputs: &[Output]) -> Vec<String> {
        let source = self.instance.config.source;
        let version = self.instance.config.version;
        let name = |output: &Output| match output {
            Output::SendAdvert { payload, reason } => {
                let received = Received::multicast(source, 255, payload);
                let (advert, _) = Advert::decode(&received, version).unwrap();
                format!("advert {} {reason:?}", advert.priority)
            }
            Output::Garp { reason } => format!("garp {reason:?}"),
            Output::StateChanged { from, to } => format!("{from:?} -> {to:?}"),
            other => format!("{other:?}").split([' ', '{', '(']).next().unwrap().to_owned(),
        };
        outputs.iter().map(name).collect()
    }
}

/// Runs `$call` on the bench and compares the names of its outputs.
macro_rules! says {
    ($bench:ident.$call:ident($($arg:expr),*) => [$($name:expr),* $(,)?]) => {{
        let outputs = $bench.$call($($arg),*);
        let expected: Vec<String> = vec![$($name.to_string()),*];
        assert_eq!($bench.names(&outputs), expected);
    }};
}
use says;

#[test]
fn initialize_refuses_by_name_and_has_no_timer() {
    let mut bench = Bench::new(config(Mode::Plain { preempt: true }));
    assert_eq!(bench.instance.state(), State::Initialize);
    assert_eq!(bench.instance.poll_timeout(), None);
    assert_eq!(bench.hear_advert(20, &bench.advert(200)), Err(Refusal::NotStarted));
    assert_eq!(bench.instance.counters().refused[Refusal::NotStarted.index()], 1);
}

#[test]
fn refused_datagrams_change_no_state_and_are_counted_by_name() {
    let mut bench = Bench::started(config(Mode::Plain { preempt: true }));
    let good = bench.advert(200);
    let group = bench.instance.config.group();
    let encode = |a: &Advert| a.encode(ip(20), group, ChecksumKind::PseudoHeader).unwrap();
    let flipped = |at: usize| {
        let mut bytes = encode(&good);
        bytes[at] ^= 1;
        bytes
    };
    let other_vrid = Advert { vrid: Vrid::new(52).unwrap(), ..good.clone() };
    let rows = [
        (254, encode(&good), Refusal::HopLimit(254)),
        (255, encode(&good)[..7].to_vec(), Refusal::Truncated(7)),
        (255, encode(&good)[..11].to_vec(), Refusal::Length { length: 11, needed: 12 }),
        (255, flipped(11), Refusal::Checksum),
        (255, encode(&other_vrid), Refusal::OtherVrid(52)),
    ];
    let before = bench.left();
    for (hop_limit, bytes, refusal) in rows {
        bench.now += ms(1);
        let got = bench.hear_bytes(&Received::multicast(ip(20), hop_limit, &bytes));
        assert_eq!(got, Err(refusal));
        assert_eq!(bench.instance.counters().refused[refusal.index()], 1, "{refusal}");
    }
    assert_eq!(bench.left().map(|left| left + ms(5)), before, "the timer ran on");
    assert_eq!(bench.instance.counters().received, 0);
    assert_eq!(bench.instance.counters().refusals().map(|(_, n)| n).sum::<u64>(), 5);
    // the same advert unharmed is heard
    assert!(bench.hear_advert(20, &good).is_ok());
}

#[test]
fn our_own_source_address_is_refused() {
    let mut bench = Bench::started(config(Mode::Plain { preempt: true }));
    assert_eq!(bench.hear_advert(10, &bench.advert(200)), Err(Refusal::FromOurselves));
    assert!(bench.hear_advert(11, &bench.advert(200)).is_ok());
}

#[test]
fn another_vrid_is_said_before_what_its_advert_lacks() {
    let mut bench = Bench::started(config(Mode::Plain { preempt: true }));
    // VRID 52, no addresses, right checksum: plain words 3134 0000 0000
    let received = [0x31, 52, 0, 0, 0, 0, 0xce, 0xcb];
    let got = bench.hear_bytes(&Received::multicast(ip(20), 255, &received));
    assert_eq!(got, Err(Refusal::OtherVrid(52)));
}

#[test]
fn sums_are_sent_as_heard_last_and_only_the_peer_teaches_where_it_is_known() {
    let send = |bench: &mut Bench| {
        bench.instance.promote(bench.now);
        let outputs = bench.drain();
        let payload = outputs.iter().find_map(|o| match o {
            Output::SendAdvert { payload, .. } => Some(payload.clone()),
            _ => None,
        });
        let received = Received::multicast(ip(10), 255, payload.as_ref().unwrap());
        Advert::decode(&received, Version::V3).unwrap().1
    };
    let teach = |bench: &mut Bench, from: u8| {
        let advert = bench.advert(100);
        let group = bench.instance.config.group();
        let bytes = advert.encode(ip(from), group, ChecksumKind::Plain).unwrap();
        assert!(bench.hear_bytes(&Received::multicast(ip(from), 255, &bytes)).is_ok());
    };
    let mut unknown = Bench::started(config(Mode::Coupled { peer: None }));
    assert_eq!(send(&mut unknown.clone_bench()), ChecksumKind::PseudoHeader);
    teach(&mut unknown, 20);
    assert_eq!(send(&mut unknown), ChecksumKind::Plain);
    let mut known = Bench::started(config(Mode::Coupled { peer: Some(ip(20)) }));
    teach(&mut known, 30);
    assert_eq!(send(&mut known.clone_bench()), ChecksumKind::PseudoHeader);
    teach(&mut known, 20);
    assert_eq!(send(&mut known), ChecksumKind::Plain);
}

impl Bench {
    fn clone_bench(&self) -> Self {
        Self { instance: self.instance.clone(), now: self.now }
    }
}

#[test]
fn differences_are_said_once_and_adverts_still_count() {
    let mut bench = Bench::started(config(Mode::Plain { preempt: false }));
    let other = Advert { addresses: vec![ip(100), ip(101)], ..bench.advert(200) };
    assert_eq!(
        bench.hear_advert(20, &other).unwrap(),
        [Output::Differs(Difference { source: ip(20), addresses: true, interval: false })]
    );
    assert_eq!(bench.hear_advert(20, &other).unwrap(), []);
    let slower = Advert { interval: interval(200), ..bench.advert(200) };
    assert_eq!(
        bench.hear_advert(20, &slower).unwrap(),
        [Output::Differs(Difference { source: ip(20), addresses: false, interval: true })]
    );
    assert_eq!(bench.hear(20, 200), []);
    assert_eq!(bench.hear_advert(20, &other).unwrap().len(), 1, "said again after agreement");
    assert_eq!(bench.instance.counters().received, 5);
}

#[test]
fn hostile_bytes_never_grow_the_queue() {
    let mut bench = Bench::started(config(Mode::Coupled { peer: Some(ip(20)) }));
    bench.instance.promote(bench.now);
    bench.drain();
    for n in 0..2000u16 {
        let advert =
            Advert { interval: interval(10 + n % 7 * 10), ..bench.advert((n % 256) as u8) };
        let outputs = bench.hear_advert(11 + (n % 200) as u8, &advert).unwrap();
        assert!(outputs.len() <= 5, "{outputs:?}");
    }
    assert_eq!(bench.instance.state(), State::Active);
    // all at one instant: one immediate answer, the rest withheld
    assert_eq!(bench.instance.counters().sent, 2);
    assert!(bench.instance.counters().answers_withheld > 100);
}

#[test]
fn bad_configurations_are_refused() {
    let good = config(Mode::Plain { preempt: true });
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    let slow = AdvertInterval::from_seconds(41).unwrap();
    let c = |f: &dyn Fn(&mut InstanceConfig)| {
        let mut config = good.clone();
        f(&mut config);
        Instance::new(config).map(|_| ())
    };
    assert_eq!(c(&|_| {}), Ok(()));
    assert_eq!(c(&|c| c.priority = Priority::RESIGNED), Err(ConfigError::PriorityZero));
    assert_eq!(c(&|c| c.addresses.clear()), Err(ConfigError::AddressCount(0)));
    assert_eq!(c(&|c| c.addresses.push(v6)), Err(ConfigError::MixedFamilies(v6)));
    assert_eq!(c(&|c| c.down_multiplier = 0), Err(ConfigError::DownMultiplierZero));
    assert_eq!(c(&|c| c.interval = slow), Err(ConfigError::Interval(slow)));
    assert_eq!(c(&|c| c.auth = Auth::Simple([1; 8])), Err(ConfigError::AuthInVersion3));
    let fast = Err(ConfigError::Interval(interval(100)));
    assert_eq!(c(&|c| c.version = Version::V2), fast);
    let six = InstanceConfig { source: v6, addresses: vec![v6], ..good.clone() };
    assert_eq!(six.check(), Ok(()));
    let six = InstanceConfig { version: Version::V2, ..six };
    assert_eq!(six.check(), Err(ConfigError::Version2Ipv6));
}
