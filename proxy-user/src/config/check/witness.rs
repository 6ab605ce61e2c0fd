//! `[witness]`.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::super::raw::{At, OneOrMany, Raw, RawWitness};
use super::super::{RegisterPlace, UnreachableWitness, Witness};
use super::Checker;

const MS: Duration = Duration::from_millis(1);
const HINT: &str = "address = \"192.0.2.3:7710\", or etcd = \"http://192.0.2.3:2379\"";

impl Checker<'_> {
    pub(super) fn witness(&mut self, raw: &Raw) -> Option<Witness> {
        let spanned = raw.witness.as_ref()?;
        let (witness, span) = (spanned.get_ref(), spanned.span());
        if raw.node.as_ref().is_none_or(|node| node.get_ref().peer.is_none()) {
            let hint = "add peer = \"ip:port\" to [node], or remove the table";
            self.problem(span, "[witness] means nothing without a peer", hint);
            return None;
        }
        let register = self.register_place(witness, &span);
        let words = [
            ("hold", UnreachableWitness::Hold),
            ("prefer_master", UnreachableWitness::PreferMaster),
        ];
        let key = "[witness] unreachable";
        let unreachable = self.word(&witness.unreachable, key, UnreachableWitness::Hold, &words);
        // a node asks again after a second
        let limits = 10 * MS..=900 * MS;
        let timeout = self.time(&witness.timeout, "[witness] timeout", 60 * MS, limits);
        Some(Witness { register: register?, unreachable, timeout })
    }

    fn register_place(
        &mut self,
        witness: &RawWitness,
        span: &Range<usize>,
    ) -> Option<RegisterPlace> {
        if let (Some(prefix), None) = (&witness.prefix, &witness.etcd) {
            let message = "[witness] prefix means nothing without etcd";
            self.problem(prefix.span(), message, "remove it, or add etcd");
            return None;
        }
        match (&witness.address, &witness.etcd) {
            (Some(_), None) => {
                let addresses = self.addresses(&witness.address, "[witness] address")?;
                Some(RegisterPlace::Tandem(addresses))
            }
            (None, Some(_)) => {
                let urls = self.urls(&witness.etcd)?;
                Some(RegisterPlace::Etcd { urls, prefix: self.prefix(&witness.prefix)? })
            }
            (None, None) => {
                self.problem(span.clone(), "[witness] has neither address nor etcd", HINT);
                None
            }
            (Some(_), Some(etcd)) => {
                let message = "[witness] has both address and etcd";
                self.problem(etcd.span(), message, "there is one register: keep one of them");
                None
            }
        }
    }

    fn urls(&mut self, at: &At<OneOrMany>) -> Option<Vec<String>> {
        let at = at.as_ref()?;
        let urls: Option<Vec<_>> = at.get_ref().0.iter().map(|text| self.url(text, at)).collect();
        if urls.as_ref().is_some_and(Vec::is_empty) {
            self.problem(at.span(), "[witness] etcd is empty", "give at least one member's URL");
            return None;
        }
        urls
    }

    /// Names are not resolved: a takeover must not wait for a resolver.
    fn url(&mut self, text: &str, at: &Spanned<OneOrMany>) -> Option<String> {
        let bare = text.strip_suffix('/').unwrap_or(text);
        let rest = bare.strip_prefix("http://");
        if let Some(Ok(address)) = rest.map(str::parse::<SocketAddr>)
            && address.port() != 0
        {
            return Some(bare.to_owned());
        }
        let hint = if text.starts_with("https://") {
            "TLS is not spoken: use a private network, or `tandem witness`".to_owned()
        } else {
            "write http://ip:port, such as \"http://192.0.2.3:2379\"; host names are not resolved"
                .to_owned()
        };
        self.problem(at.span(), format!("[witness] etcd: \"{text}\" is not a member's URL"), hint);
        None
    }

    fn prefix(&mut self, at: &At<String>) -> Option<String> {
        let Some(at) = at else { return Some("/tandem/".to_owned()) };
        let prefix = at.get_ref();
        let good = !prefix.is_empty() && prefix.len() <= 128;
        if good && prefix.chars().all(|c| c.is_ascii_graphic()) {
            return Some(prefix.clone());
        }
        let message = format!("[witness] prefix = {prefix:?} is not a key's beginning");
        self.problem(at.span(), message, "1 to 128 visible ASCII characters, such as \"/tandem/\"");
        None
    }
}
