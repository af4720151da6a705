//! What is in force, each thing with who said so: for the people at the server.

use scrinium_protocol::sl::in_force::{Origin, Setting};

use super::limits::shown_bytes;
use super::{Config, FeedSource};

impl Config {
    /// What is in force when `central` is the server's configuration on top of this one, and what of that is not
    /// taken.
    pub(crate) fn settings(&self, central: Option<&Self>) -> Vec<Setting> {
        let own = match self.has_default_sources {
            true => Origin::Default,
            false => Origin::Machine,
        };
        let in_force = self.under(central);
        let mut settings = Vec::new();
        let mut put = |origin, name: &str, value: String| {
            settings.push(Setting {
                origin,
                name: name.into(),
                value,
            });
        };
        for (index, source) in in_force.sources.iter().enumerate() {
            // Those of the server come first.
            let theirs = central.map_or(0, |central| central.sources.len());
            let origin = if index < theirs { Origin::Server } else { own };
            put(origin, "source.file", source.files.text.clone());
        }
        for feed in &in_force.feeds {
            let origin = if self.feeds.contains(feed) {
                own
            } else {
                Origin::Server
            };
            put(origin, feed.field(), feed.own_stream().name);
        }
        let kept_from = central.into_iter().flat_map(|central| &central.feeds);
        for feed in kept_from.filter(|feed| !in_force.has_feed(feed)) {
            put(Origin::NotTaken, feed.field(), feed.own_stream().name);
        }
        for (patterns, origin) in [
            (Some(&self.deny), Origin::Machine),
            (central.map(|central| &central.deny), Origin::Server),
        ] {
            for text in patterns.into_iter().flat_map(|deny| deny.texts()) {
                put(origin, "deny", text.to_owned());
            }
        }
        let theirs = central.map(|central| central.named.each());
        for (n, (name, value, is_bytes, default)) in self.named.each().into_iter().enumerate() {
            let shown = |value: Option<u64>| match value {
                Some(value) if is_bytes => shown_bytes(value),
                Some(value) => format!("{value} %"),
                None => String::new(),
            };
            let now = in_force.named.each().get(n).and_then(|each| each.1);
            let now = now.or(default);
            let wanted = theirs.and_then(|each| each.get(n).and_then(|each| each.1));
            let origin = match (value, wanted) {
                (_, Some(wanted)) if Some(wanted) == now && value != now => Origin::Server,
                (Some(own), _) if Some(own) == now => Origin::Machine,
                (None, _) if default == now => Origin::Default,
                _ => Origin::Server,
            };
            put(origin, name, shown(now));
            if wanted.is_some_and(|wanted| now.is_some_and(|now| wanted > now)) {
                put(Origin::NotTaken, name, shown(wanted));
            }
        }
        settings
    }

    fn has_feed(&self, feed: &FeedSource) -> bool {
        let stream = feed.own_stream();
        self.feeds.iter().any(|own| own.own_stream() == stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(local: &str, central: Option<&str>) -> Vec<String> {
        let local = Config::parse(local).unwrap();
        let central = central.map(|text| Config::parse_central(text).unwrap());
        let settings = local.settings(central.as_ref());
        let line = |one: &Setting| format!("{} {} = {}", one.origin.name(), one.name, one.value);
        settings.iter().map(line).collect()
    }

    #[test]
    fn each_thing_in_force_says_who_wanted_it_and_what_was_wanted_in_vain_is_said() {
        let local = "deny = ['/secret/**']\n[[source]]\nfile = '/own/*.log'\n[spool]\ndisk_bytes_max = '64 MiB'\n[limits]\ncpu_percent_max = 20\n";
        assert_eq!(
            shown(local, None),
            [
                "machine source.file = /own/*.log",
                "machine deny = /secret/**",
                "default spool.ram_bytes_max = 16 MiB",
                "machine spool.disk_bytes_max = 64 MiB",
                "default limits.deleted_bytes_max = 1 GiB",
                "default limits.upload_bytes_per_s_max = ",
                "machine limits.cpu_percent_max = 20 %",
            ]
        );
        let central = "deny = ['/more/**']\n[[source]]\nfile = '/central/*.log'\n[[source]]\nsyslog = 'udp://127.0.0.1:514'\n[spool]\ndisk_bytes_max = '1 TiB'\nram_bytes_max = '1 MiB'\n[limits]\nupload_bytes_per_s_max = '1 MiB'\ncpu_percent_max = 90\n";
        assert_eq!(
            shown(local, Some(central)),
            [
                "server source.file = /central/*.log",
                "machine source.file = /own/*.log",
                "not-taken source.syslog = udp://127.0.0.1:514",
                "machine deny = /secret/**",
                "server deny = /more/**",
                "server spool.ram_bytes_max = 1 MiB",
                "machine spool.disk_bytes_max = 64 MiB",
                "not-taken spool.disk_bytes_max = 1 TiB",
                "default limits.deleted_bytes_max = 1 GiB",
                "server limits.upload_bytes_per_s_max = 1 MiB",
                "machine limits.cpu_percent_max = 20 %",
                "not-taken limits.cpu_percent_max = 90 %",
            ]
        );
    }

    #[test]
    fn what_nobody_named_is_a_default_and_stays_one_under_a_configuration_of_the_server() {
        let defaults = shown("", None);
        assert!(
            defaults.iter().all(|line| line.starts_with("default ")),
            "{defaults:?}"
        );
        assert_eq!(shown("", Some("")), defaults);
    }
}
