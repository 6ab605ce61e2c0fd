//! `/metrics`: OpenMetrics text, made anew for each scrape by a walk over the facts. Names begin
//! with `tandem_`; a counter's sample ends in `_total`. Names and labels are part of the program's
//! public face.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::fact::{Fact, Labels, Metric, Unit, Value};
use super::handle::StatusHandle;
use crate::control::counters::{Counter, Kind};
use crate::control::role::State;

/// Everything under one prefix.
pub(super) fn registry(status: StatusHandle) -> Registry {
    let mut registry = Registry::with_prefix("tandem");
    registry.register_collector(Box::new(Metrics(status)));
    registry
}

#[derive(Debug)]
struct Metrics(StatusHandle);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::default();
        families.group(&self.0.read(), &Labels::new());
        let page = self.0.page();
        for &counter in Counter::ALL {
            let kind = match counter.kind() {
                Kind::Total => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let sample = (Labels::new(), Number::Whole(page.sum(counter)));
            families.add(counter.name(), counter.help(), kind, sample);
        }
        families.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

#[derive(Debug, Clone, Copy)]
enum Number {
    Whole(u64),
    Real(f64),
}

/// Samples of one name; the format wants them together.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, Number)>,
}

/// In the order of their first sample.
#[derive(Default)]
struct Families(Vec<Family>);

impl Families {
    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        sample: (Labels, Number),
    ) {
        match self.0.iter_mut().find(|family| family.name == name) {
            Some(family) => family.samples.push(sample),
            None => self.0.push(Family { name, help, kind, samples: vec![sample] }),
        }
    }

    /// Everything in a group; its labels go to its own metrics and to those within. What is not
    /// configured has none.
    fn group(&mut self, group: &Value, labels: &Labels) {
        let Value::Group(fields) = group else { return };
        if let Some(Value::Flag(false)) = group.get("configured") {
            return;
        }
        let mut labels = labels.clone();
        labels.extend(own_labels(fields));
        for (fact, value) in fields {
            self.fact(fact, value, &labels);
            match value {
                Value::Group(_) => self.group(value, &labels),
                Value::List(items) => items.iter().for_each(|item| self.group(item, &labels)),
                _ => {}
            }
        }
    }

    fn fact(&mut self, fact: &Fact, value: &Value, labels: &Labels) {
        let Some((metric, name)) = fact.metric else { return };
        let help = fact.help.trim_start();
        let flag = |on| Number::Whole(u64::from(on));
        let mut add = |kind, labels, number| self.add(name, help, kind, (labels, number));
        match (metric, value) {
            (Metric::Info, Value::List(items)) => {
                items.iter().for_each(|item| self.fact(fact, item, labels));
            }
            (Metric::Info, Value::Group(fields)) => {
                add(MetricType::Info, own_labels(fields).collect(), flag(true));
            }
            (Metric::States, Value::Text(_) | Value::Nothing) => {
                for state in State::ALL {
                    let labels = with(labels, &[("state", state.as_str().to_owned())]);
                    add(MetricType::Gauge, labels, flag(state.as_str() == value.text()));
                }
            }
            (Metric::Is(word), Value::Text(text)) if !text.is_empty() => {
                add(MetricType::Gauge, labels.clone(), flag(text == word));
            }
            (Metric::Total, Value::Counts { rows, .. }) => {
                for (own, count) in rows {
                    add(MetricType::Counter, with(labels, own), Number::Whole(*count));
                }
            }
            (Metric::Total, value) => {
                number(fact, value).into_iter().for_each(|number| {
                    add(MetricType::Counter, labels.clone(), number);
                });
            }
            (Metric::Gauge, value) => {
                number(fact, value).into_iter().for_each(|number| {
                    add(MetricType::Gauge, labels.clone(), number);
                });
            }
            _ => {}
        }
    }
}

fn own_labels<'a>(
    fields: &'a [(&'static Fact, Value)],
) -> impl Iterator<Item = (&'static str, String)> + 'a {
    fields.iter().filter_map(|(fact, value)| {
        let text = match value {
            Value::Count(count, _) => count.to_string(),
            value => value.text().to_owned(),
        };
        Some((fact.label?, text))
    })
}

fn with(labels: &Labels, own: &[(&'static str, String)]) -> Labels {
    labels.iter().chain(own).cloned().collect()
}

/// In the base unit.
fn number(fact: &Fact, value: &Value) -> Option<Number> {
    let divisor = |unit| match unit {
        Unit::Milliseconds => 1e3,
        Unit::Microseconds => 1e6,
        Unit::One | Unit::Name | Unit::Bytes | Unit::Seconds => 1.0,
    };
    match *value {
        Value::Flag(on) => Some(Number::Whole(u64::from(on))),
        Value::Count(count, Unit::One | Unit::Name | Unit::Bytes) => Some(Number::Whole(count)),
        Value::Count(count, unit) => Some(Number::Real(count as f64 / divisor(unit))),
        Value::Real(number, unit) => Some(Number::Real(number / divisor(unit))),
        Value::Nothing if fact.zero => Some(Number::Real(0.0)),
        _ => None,
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, self.kind)?;
        for (labels, number) in &self.samples {
            match self.kind {
                MetricType::Info => metric.encode_info(labels)?,
                // A family of no labels writes braces; a plain sample has none.
                _ if labels.is_empty() => self.sample(&mut metric, *number)?,
                _ => self.sample(&mut metric.encode_family(labels)?, *number)?,
            }
        }
        Ok(())
    }

    fn sample(&self, encoder: &mut MetricEncoder<'_>, number: Number) -> fmt::Result {
        match (self.kind, number) {
            (MetricType::Counter, Number::Whole(n)) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(&n, None)
            }
            (MetricType::Counter, Number::Real(n)) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(&n, None)
            }
            (_, Number::Whole(n)) => encoder.encode_gauge(&n),
            (_, Number::Real(n)) => encoder.encode_gauge(&n),
        }
    }
}
