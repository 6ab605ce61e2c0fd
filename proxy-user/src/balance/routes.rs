//! Which upstream serves a host and path: the routes of one `[[http]]`, in file order.

use crate::config;
use crate::http::Reason;
use crate::http::target::{host_name, normal_path};

#[derive(Debug, Clone)]
struct Route {
    host: Option<Box<[u8]>>,
    path: Box<[u8]>,
    upstream: u16,
}

/// The routes of one listener.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    list: Vec<Route>,
}

impl Routes {
    /// As configured.
    #[must_use]
    pub fn new(routes: &[config::Route]) -> Self {
        let route = |route: &config::Route| Route {
            host: route.host.as_ref().map(|host| host.as_bytes().into()),
            path: route.path.as_bytes().into(),
            upstream: route.upstream,
        };
        Self { list: routes.iter().map(route).collect() }
    }

    /// The upstream of the first route that matches.
    ///
    /// # Errors
    /// `NoRoute`, or `TargetSyntax` for a path with two readings.
    pub fn find(&self, authority: Option<&[u8]>, path: &[u8]) -> Result<u16, Reason> {
        // Also when every path goes to one place: what climbs above the root is forwarded nowhere.
        let path = normal_path(path)?;
        let host = authority.map(host_name);
        let matches = |route: &&Route| {
            route.host.as_ref().is_none_or(|want| host.as_deref() == Some(&**want))
                && path.starts_with(&route.path)
        };
        self.list.iter().find(matches).map(|route| route.upstream).ok_or(Reason::NoRoute)
    }
}
