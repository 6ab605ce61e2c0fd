//! The file's shape as serde sees it: every key optional where it has a default, every value with
//! its place, unknown keys refused. `check.rs` turns this into the types of `mod.rs`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

/// A value with its place in the file.
pub(super) type At<T> = Option<Spanned<T>>;

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) xdp: At<String>,
    pub(super) node: Option<Spanned<RawNode>>,
    pub(super) vip: Vec<Spanned<RawVip>>,
    pub(super) witness: Option<Spanned<RawWitness>>,
    pub(super) cache: Option<Spanned<RawCache>>,
    pub(super) http: Vec<Spanned<RawHttp>>,
    pub(super) upstream: BTreeMap<String, Spanned<RawUpstream>>,
    pub(super) engine: RawEngine,
    pub(super) admin: RawAdmin,
    pub(super) log: RawLog,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNode {
    pub(super) name: At<String>,
    pub(super) side: At<String>,
    pub(super) peer: At<OneOrMany>,
    pub(super) listen: At<OneOrMany>,
    pub(super) cluster: At<String>,
    pub(super) key_file: At<String>,
    pub(super) state_dir: At<String>,
    pub(super) heartbeat: At<String>,
    pub(super) dead_after: At<i64>,
    pub(super) unsynced_takeover: At<String>,
    pub(super) lonely_segment: At<String>,
    pub(super) boot_wait: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawVip {
    pub(super) address: At<String>,
    pub(super) interface: At<String>,
    pub(super) vrid: At<i64>,
    pub(super) priority: At<i64>,
    pub(super) advert: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWitness {
    pub(super) address: At<OneOrMany>,
    pub(super) etcd: At<OneOrMany>,
    pub(super) prefix: At<String>,
    pub(super) unreachable: At<String>,
    pub(super) timeout: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCache {
    pub(super) listen: At<OneOrMany>,
    pub(super) memory: At<String>,
    pub(super) item_size_max: At<String>,
    pub(super) ack: At<String>,
    pub(super) ack_timeout: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    pub(super) listen: At<OneOrMany>,
    pub(super) routes: Vec<Spanned<RawRoute>>,
    pub(super) header_timeout: At<String>,
    pub(super) idle_timeout: At<String>,
    pub(super) body_size_max: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRoute {
    pub(super) host: At<String>,
    pub(super) path: At<String>,
    pub(super) upstream: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawUpstream {
    pub(super) balance: At<String>,
    pub(super) sticky: At<toml::Table>,
    pub(super) servers: Vec<Spanned<RawServer>>,
    pub(super) max_fails: At<i64>,
    pub(super) fail_timeout: At<String>,
    pub(super) connect_timeout: At<String>,
    pub(super) reply_timeout: At<String>,
    pub(super) keepalive: At<i64>,
    pub(super) health: Option<Spanned<RawHealth>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawServer {
    pub(super) address: At<String>,
    pub(super) weight: At<i64>,
    pub(super) route: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHealth {
    pub(super) interval: At<String>,
    pub(super) timeout: At<String>,
    pub(super) rise: At<i64>,
    pub(super) fall: At<i64>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEngine {
    pub(super) workers: At<i64>,
    pub(super) io: At<String>,
    pub(super) stall_kill: At<String>,
    pub(super) user: At<String>,
    pub(super) stop_patience: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAdmin {
    pub(super) listen: At<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub(super) level: At<String>,
    pub(super) access: At<String>,
}

/// `"x"` or `["x", "y"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

struct OneOrManyVisitor;

impl<'de> Visitor<'de> for OneOrManyVisitor {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<OneOrMany, E> {
        Ok(OneOrMany(vec![value.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = seq.next_element::<String>()? {
            all.push(value);
        }
        Ok(OneOrMany(all))
    }
}
