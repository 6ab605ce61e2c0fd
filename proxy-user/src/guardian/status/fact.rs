//! What a fact is: a value, and everything that is said of it in one place. [`facts!`] declares a
//! group of facts; JSON, metrics and page are walks over the tree that [`Tell`] makes of one, and
//! know no fact by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::facts::Root;
use crate::control::counters::Counter;
use crate::control::role::State;
use crate::control::shared::SharedPage;

/// The moment that a status is of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'a> {
    /// CLOCK_MONOTONIC.
    pub(super) now_ns: u64,
    /// Milliseconds since 1970.
    pub(super) unix_ms: u64,
    /// The engine's numbers.
    pub(super) page: SharedPage,
    /// What the guardian's threads left.
    pub(super) root: &'a Root,
}

impl Moment<'_> {
    /// A counter of the page over all workers.
    pub(super) fn sum(&self, counter: Counter) -> u64 {
        self.page.sum(counter)
    }
}

/// Everything that is said of one fact but its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fact {
    /// In JSON, and where nothing else is said.
    pub(super) name: &'static str,
    /// The documentation's text.
    pub(super) help: &'static str,
    pub(super) metric: Option<(Metric, &'static str)>,
    /// Name of the label that it is to its group's metrics and to those within.
    pub(super) label: Option<&'static str>,
    /// No value counts as 0 in metrics.
    pub(super) zero: bool,
    /// A group whose fields stand beside its neighbours in JSON.
    pub(super) flat: bool,
    /// Not in JSON.
    pub(super) hidden: bool,
    /// Title of the page's card (a group) or table (a list).
    pub(super) section: Option<&'static str>,
    /// Title of the row or column in it.
    pub(super) row: Option<(&'static str, Tone)>,
    /// Stands in the card's heading.
    pub(super) headline: bool,
}

/// How a fact is a metric; names are without prefix and without `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    /// The value, which may fall.
    Gauge,
    /// The value, which only grows while the guardian lives; of [`Value::Counts`] one for each row.
    Total,
    /// 1 for the state that it names, 0 for each other one.
    States,
    /// 1 while it says this word.
    Is(&'static str),
    /// A group whose labels are the message.
    Info,
}

/// When a row stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// A little, when it is neither zero nor `false`.
    Warn,
    /// When it is neither zero nor `false`.
    Bad,
    /// When it is `false`.
    Must,
}

/// What can be said of a fact in [`facts!`].
macro_rules! say {
    ($($name:ident($($word:ident),*) $field:ident: $value:expr;)*) => {
        impl Fact {
            pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
                let (flat, hidden, zero, headline) = (false, false, false, false);
                let (metric, label, section, row) = (None, None, None, None);
                Self { name, help, metric, label, zero, flat, hidden, section, row, headline }
            }

            $(pub(super) const fn $name(self, $($word: &'static str),*) -> Self {
                Self { $field: $value, ..self }
            })*
        }
    };
}

say! {
    gauge(name) metric: Some((Metric::Gauge, name));
    total(name) metric: Some((Metric::Total, name));
    states(name) metric: Some((Metric::States, name));
    is(name, word) metric: Some((Metric::Is(word), name));
    info(name) metric: Some((Metric::Info, name));
    label(name) label: Some(name);
    zero() zero: true;
    flat() flat: true;
    hidden() hidden: true;
    section(title) section: Some(title);
    row(title) row: Some((title, Tone::Plain));
    warn(title) row: Some((title, Tone::Warn));
    bad(title) row: Some((title, Tone::Bad));
    must(title) row: Some((title, Tone::Must));
    headline() headline: true;
}

/// What a number counts; metrics are in base units, whatever JSON has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    One,
    /// Nothing: it names.
    Name,
    Bytes,
    Seconds,
    Milliseconds,
    Microseconds,
}

pub(super) type Labels = Vec<(&'static str, String)>;

/// A value at one moment.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Nothing,
    Flag(bool),
    Count(u64, Unit),
    Real(f64, Unit),
    Text(String),
    /// Counts told apart by labels, the first of which names them; if `rare`, JSON has only those
    /// above 0.
    Counts {
        rows: Vec<(Labels, u64)>,
        rare: bool,
    },
    Group(Vec<(&'static Fact, Self)>),
    List(Vec<Self>),
}

impl Value {
    /// A field of a group, or of a flat group in it.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let Self::Group(fields) = self else { return None };
        fields.iter().find_map(|(fact, value)| match value {
            _ if fact.flat => value.get(name),
            value => (fact.name == name).then_some(value),
        })
    }

    /// Its text, if it is one.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }

    /// Neither nothing, zero nor false.
    pub(super) fn is_some(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Flag(on) => *on,
            Self::Count(count, _) => *count > 0,
            Self::Real(number, _) => *number > 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::Counts { rows, .. } => rows.iter().any(|(_, count)| *count > 0),
            Self::Group(_) => true,
            Self::List(items) => !items.is_empty(),
        }
    }

    fn fields<M: serde::ser::SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let Self::Group(fields) = self else { return Ok(()) };
        for (fact, value) in fields.iter().filter(|(fact, _)| !fact.hidden) {
            if fact.flat {
                value.fields(map)?;
            } else {
                map.serialize_entry(fact.name, value)?;
            }
        }
        Ok(())
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nothing => serializer.serialize_none(),
            Self::Flag(on) => serializer.serialize_bool(*on),
            Self::Count(count, _) => serializer.serialize_u64(*count),
            Self::Real(number, _) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Counts { rows, rare } => {
                let mut map = serializer.serialize_map(None)?;
                for (labels, count) in rows.iter().filter(|(_, count)| !rare || *count > 0) {
                    map.serialize_entry(labels.first().map_or("", |(_, name)| name), count)?;
                }
                map.end()
            }
            Self::Group(_) => {
                let mut map = serializer.serialize_map(None)?;
                self.fields(&mut map)?;
                map.end()
            }
            Self::List(items) => serializer.collect_seq(items),
        }
    }
}

/// Becomes a value.
pub(super) trait Tell {
    fn tell(&self, at: &Moment<'_>) -> Value;
}

macro_rules! told {
    ($($type:ty: |$value:ident| $told:expr;)*) => {$(
        impl Tell for $type {
            fn tell(&self, _: &Moment<'_>) -> Value {
                let $value = self;
                $told
            }
        }
    )*};
}

told! {
    bool: |on| Value::Flag(*on);
    u8: |count| Value::Count(u64::from(*count), Unit::One);
    u16: |count| Value::Count(u64::from(*count), Unit::One);
    u32: |count| Value::Count(u64::from(*count), Unit::One);
    u64: |count| Value::Count(*count, Unit::One);
    AtomicBool: |on| Value::Flag(on.load(Ordering::Relaxed));
    AtomicU64: |count| Value::Count(count.load(Ordering::Relaxed), Unit::One);
    &'static str: |text| Value::Text((*text).to_owned());
    String: |text| Value::Text(text.clone());
    State: |state| Value::Text(state.as_str().to_owned());
    Pid: |pid| Value::Count(u64::from(pid.0), Unit::Name);
    Bytes: |bytes| Value::Count(bytes.0, Unit::Bytes);
    Rtt: |ns| match ns.0.load(Ordering::Relaxed) {
        0 => Value::Nothing,
        ns => Value::Count(ns / 1000, Unit::Microseconds),
    };
}

impl<T: Tell> Tell for Option<T> {
    fn tell(&self, at: &Moment<'_>) -> Value {
        self.as_ref().map_or(Value::Nothing, |value| value.tell(at))
    }
}

impl<T: Tell> Tell for Vec<T> {
    fn tell(&self, at: &Moment<'_>) -> Value {
        Value::List(self.iter().map(|item| item.tell(at)).collect())
    }
}

impl<T: Tell> Tell for Arc<T> {
    fn tell(&self, at: &Moment<'_>) -> Value {
        T::tell(self, at)
    }
}

impl<T: Tell> Tell for ArcSwap<T> {
    fn tell(&self, at: &Moment<'_>) -> Value {
        self.load().tell(at)
    }
}

/// A counter of the shared page, over all workers; of bytes where its name ends so.
impl Tell for Counter {
    fn tell(&self, at: &Moment<'_>) -> Value {
        let unit = if self.name().ends_with("_bytes") { Unit::Bytes } else { Unit::One };
        Value::Count(at.sum(*self), unit)
    }
}

/// What is worked out when somebody asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Derived(pub(super) fn(&Moment<'_>) -> Value);

impl Tell for Derived {
    fn tell(&self, at: &Moment<'_>) -> Value {
        self.0(at)
    }
}

/// A process id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pid(pub(super) u32);

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

/// A moment on CLOCK_MONOTONIC, told as the whole milliseconds since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Since(pub(super) u64);

impl Tell for Since {
    fn tell(&self, at: &Moment<'_>) -> Value {
        Value::Count(at.now_ns.saturating_sub(self.0) / 1_000_000, Unit::Milliseconds)
    }
}

/// The last time of what comes again and again, on CLOCK_MONOTONIC; 0 before the first.
#[derive(Debug, Default)]
pub(super) struct Last(pub(super) AtomicU64);

impl Tell for Last {
    fn tell(&self, at: &Moment<'_>) -> Value {
        match self.0.load(Ordering::Relaxed) {
            0 => Value::Nothing,
            last => milliseconds(at.now_ns.saturating_sub(last)),
        }
    }
}

/// A round trip, nanoseconds; 0 while unknown.
#[derive(Debug, Default)]
pub(super) struct Rtt(pub(super) AtomicU64);

/// Milliseconds with three places.
pub(super) fn milliseconds(ns: u64) -> Value {
    Value::Real((ns / 1000) as f64 / 1e3, Unit::Milliseconds)
}

/// Declares groups of facts, each fact with its storage, its field in JSON, its metric and its row
/// on the page:
///
/// ```text
/// /// The text is the metric's help too.
/// name: Type = initial value, gauge("metric"), row("title on the page");
/// ```
/// What may follow the type are the functions of [`Fact`]. Without an initial value it is
/// the type's default.
macro_rules! facts {
    (@initial) => { Default::default() };
    (@initial $initial:expr) => { $initial };
    ($(
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {$(
            $(#[doc = $doc:literal])+
            $field:ident: $type:ty $(= $initial:expr)? $(, $say:ident($($word:expr),*))*;
        )*}
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug)]
        $vis struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: facts!(@initial $($initial)?),)* }
            }
        }

        impl $crate::guardian::status::fact::Tell for $name {
            fn tell(
                &self,
                at: &$crate::guardian::status::fact::Moment<'_>,
            ) -> $crate::guardian::status::fact::Value {
                use $crate::guardian::status::fact::{Fact, Value};
                Value::Group(vec![$({
                    const FACT: &Fact = &Fact::new(stringify!($field), concat!($($doc),+))
                        $(.$say($($word),*))*;
                    (FACT, self.$field.tell(at))
                },)*])
            }
        }
    )*};
}

pub(super) use facts;
