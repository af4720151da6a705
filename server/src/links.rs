//! Download links: what somebody asked for once, to be fetched for 31 days by whoever may sign in.
//!
//! ```text
//! what is asked for ─▶ LinkRecord ─▶ each download: the package, made anew
//! ```
//!
//! Invariants:
//! 1. A link holds no entry. What was deleted since it was made is in no download; what was received since is not either,
//!    whenever it was collected.
//! 2. A download is in the audit trail, and counted, before its first byte.
//! 3. Every account has places of its own: what one makes takes none of another's. Accounts are made by hand, and few.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use axum::body::Body;
use data_encoding::BASE32_NOPAD;
use scrinium_segment::random;
use serde_json::json;

use crate::audit::Actor;
use crate::catalogue::Catalogue;
use crate::catalogue::records::LinkRecord;
use crate::clock::{self, DAY_US};
use crate::control::export::{self, ExportRequest};
use crate::control::or_said;
use crate::core::Core;
use crate::said::said;
use crate::waits;

/// Every link, those that are over too.
pub(crate) struct Links {
    catalogue: Arc<Catalogue>,
    state: Mutex<BTreeMap<String, LinkRecord>>,
}

/// What a link gives.
pub(crate) enum Fetched {
    Package(Body),
    /// Its time is over, or somebody ended it.
    Over,
    Unknown,
}

impl Links {
    pub(crate) fn load(catalogue: Arc<Catalogue>) -> Result<Self> {
        let links = catalogue.load::<LinkRecord>()?.into_iter();
        let state = links.map(|link| (link.id.clone(), link)).collect();
        Ok(Self {
            catalogue,
            state: Mutex::new(state),
        })
    }

    /// The links, newest first.
    pub(crate) fn list(&self) -> Vec<LinkRecord> {
        let mut links: Vec<LinkRecord> = self.lock().values().cloned().collect();
        links.sort_by_key(|link| core::cmp::Reverse(link.made_us));
        links
    }

    fn add(&self, link: &LinkRecord) -> Result<()> {
        let mut state = self.lock();
        let own = state.values().filter(|old| old.by == link.by);
        let now_us = link.made_us;
        let (mut over, living): (Vec<_>, Vec<_>) = own.partition(|old| old.is_over(now_us));
        if living.len() >= LIVING_OF_ONE_MAX {
            let days = LIFE_US / DAY_US;
            return Err(said!("refused.links", &link.by, LIVING_OF_ONE_MAX, days).into());
        }
        // Of those that are over the newest are remembered.
        over.sort_by_key(|old| core::cmp::Reverse(old.end_us));
        let mut number = 0..;
        over.retain(|_| {
            number
                .next()
                .is_none_or(|number| number >= OVER_OF_ONE_MAX - 1)
        });
        let is_past = |old: &&LinkRecord| old.end_us.saturating_add(REMEMBERED_US) < now_us;
        let past = state.values().filter(is_past);
        let gone: BTreeMap<String, LinkRecord> = over
            .into_iter()
            .chain(past)
            .map(|old| (old.id.clone(), old.clone()))
            .collect();
        self.catalogue.write(|changes| {
            gone.values().try_for_each(|old| changes.remove(old))?;
            changes.put(link)
        })?;
        state.retain(|id, _| !gone.contains_key(id));
        state.insert(link.id.clone(), link.clone());
        Ok(())
    }

    /// Changes a link, durably; returns it as it is then.
    fn change(&self, id: &str, change: impl FnOnce(&mut LinkRecord)) -> Result<LinkRecord> {
        let mut state = self.lock();
        let mut link = state
            .get(id)
            .ok_or_else(|| said!("refused.no_link"))?
            .clone();
        change(&mut link);
        self.catalogue.put(&link)?;
        state.insert(id.to_owned(), link.clone());
        Ok(link)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LinkRecord>> {
        waits::lock(&self.state)
    }
}

impl LinkRecord {
    /// Whether it gives nothing any more.
    pub(crate) fn is_over(&self, now_us: u64) -> bool {
        self.end_us <= now_us
    }

    /// Where it is on the console.
    pub(crate) fn path(&self) -> String {
        format!("/downloads/{}", self.id)
    }
}

/// Makes a link for what is asked for, as far as it is there now.
pub(crate) async fn make(
    core: &Core,
    mut request: ExportRequest,
    by: &Actor,
) -> Result<LinkRecord> {
    if request.opening.is_some() {
        return Err(said!("refused.link_opening").into());
    }
    let now_us = clock::unix_us();
    request.to_us = Some(request.to_us.unwrap_or(now_us).min(now_us));
    request.received_until_us = Some(now_us);
    request.settle(core)?;
    let word: [u8; 20] = random()?;
    let link = LinkRecord {
        id: BASE32_NOPAD.encode(&word).to_lowercase(),
        request,
        by: by.name.clone(),
        made_us: now_us,
        end_us: now_us + LIFE_US,
        downloads: 0,
        last_us: 0,
    };
    audit(core, by, "link made", &link).await?;
    let done = core.links.add(&link);
    or_said(core, by, "link made", done).await?;
    Ok(link)
}

/// Begins a download for `by`. `opening` is the word of an opening of the second container.
pub(crate) async fn fetch(
    core: Arc<Core>,
    id: &str,
    opening: Option<String>,
    by: &Actor,
) -> Result<Fetched> {
    let found = core.links.lock().get(id).cloned();
    let Some(link) = found else {
        return Ok(Fetched::Unknown);
    };
    if link.is_over(clock::unix_us()) {
        return Ok(Fetched::Over);
    }
    audit(&core, by, "link used", &link).await?;
    let request = ExportRequest {
        opening,
        // Version 0.1.0 did not write it into the request.
        received_until_us: Some(link.made_us),
        ..link.request
    };
    let body = export::begin(core.clone(), request, by).await?;
    core.links.change(id, |link| {
        link.downloads += 1;
        link.last_us = clock::unix_us();
    })?;
    Ok(Fetched::Package(body))
}

/// Ends a link before its time.
pub(crate) async fn end(core: &Core, id: &str, by: &Actor) -> Result<LinkRecord> {
    let found = core.links.lock().get(id).cloned();
    let link = found.ok_or_else(|| said!("refused.no_link"))?;
    audit(core, by, "link ended", &link).await?;
    core.links.change(id, |link| {
        link.end_us = link.end_us.min(clock::unix_us());
    })
}

async fn audit(core: &Core, by: &Actor, action: &str, link: &LinkRecord) -> Result<()> {
    let LinkRecord {
        id,
        by: made_by,
        downloads,
        ..
    } = link;
    let until = crate::present::rfc3339(link.end_us);
    let detail = json!({ "link": id, "made_by": made_by, "until": until, "downloads": downloads });
    crate::control::audit_as(core, by, action, detail).await
}

/// How long a link gives something.
pub(crate) const LIFE_US: u64 = 31 * DAY_US;
/// How long it is then still said to be over, and not unknown.
const REMEMBERED_US: u64 = 365 * DAY_US;
/// Links of one account, or of the local commands, that give something: six a day. With texts of ordinary length 100 KB.
const LIVING_OF_ONE_MAX: usize = 200;
/// Of one account that are over and remembered all the same; the oldest is forgotten for one more.
const OVER_OF_ONE_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use scrinium_protocol::entry::EntryFlags;
    use scrinium_protocol::identity::StreamKind;
    use scrinium_protocol::secret::Secret;
    use tokio::sync::oneshot;

    use super::*;
    use crate::core::Running;
    use crate::core::tests::{new_volume, running};
    use crate::local::LocalEntry;

    /// Received now, and collected when `time_us` says.
    async fn receive(running: &Running, text: &str, time_us: u64) {
        let (durable, done) = oneshot::channel();
        let entry = LocalEntry {
            kind: StreamKind::SyslogUdp,
            name: "192.0.2.1".into(),
            connection: 0,
            time_us,
            flags: EntryFlags::NONE,
            bytes: text.into(),
            durable: Some(durable),
            room: None,
        };
        assert!(running.local.send(entry).await.is_ok());
        done.await.unwrap();
    }

    /// An agent that was away brings what it collected before the link was made.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_link_gives_nothing_that_was_received_after_it_was_made() {
        let dir = new_volume("links", |_| {});
        let running = running(&dir);
        let core = running.core.clone();
        let hour_ago_us = clock::unix_us() - 3_600_000_000;
        receive(&running, "before the link\n", hour_ago_us).await;
        let by = Actor::of("admin");
        let mut request = ExportRequest::package(crate::i18n::Language::En);
        request.format = "raw".into();
        request.query = Some("link".into());
        let link = make(&core, request, &by).await.unwrap();
        receive(&running, "behind the link\n", hour_ago_us + 1).await;
        let fetched = fetch(core.clone(), &link.id, None, &by).await.unwrap();
        let Fetched::Package(body) = fetched else {
            panic!("it gives nothing")
        };
        let text = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text);
        assert!(
            text.contains("before the link") && !text.contains("behind the link"),
            "{text}"
        );
        drop(core);
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_account_fills_its_own_places_and_links_that_are_over_make_room() {
        let path = std::env::temp_dir().join(format!("scrinium-links-{}.db", std::process::id()));
        drop(std::fs::remove_file(&path));
        let catalogue = Catalogue::create(&path, &Secret::new([1; 32])).unwrap();
        let links = Links::load(Arc::new(catalogue)).unwrap();
        let now_us = 1_800_000_000_000_000;
        for n in 0..LIVING_OF_ONE_MAX {
            links.add(&link("one", n, now_us)).unwrap();
        }
        let refused = links
            .add(&link("one", 9999, now_us))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("one has 200 download links"), "{refused}");
        links.add(&link("two", 0, now_us)).unwrap();
        // When they are over there is room again, and those that are over are remembered, as many as may be.
        let later_us = now_us + LIFE_US;
        for n in 0..LIVING_OF_ONE_MAX {
            links.add(&link("one", 1000 + n, later_us)).unwrap();
        }
        let of_one = || links.list().iter().filter(|link| link.by == "one").count();
        assert!(
            of_one() >= LIVING_OF_ONE_MAX + OVER_OF_ONE_MAX - 1,
            "{}",
            of_one()
        );
        let much_later_us = later_us + LIFE_US;
        links.add(&link("one", 2000, much_later_us)).unwrap();
        assert_eq!(of_one(), OVER_OF_ONE_MAX);
        // After a year nobody's are remembered.
        links
            .add(&link(
                "one",
                3000,
                much_later_us + LIFE_US + REMEMBERED_US + 1,
            ))
            .unwrap();
        assert_eq!(links.list().len(), 1);
        let catalogue = links.catalogue;
        assert_eq!(catalogue.load::<LinkRecord>().unwrap().len(), 1);
    }

    fn link(by: &str, n: usize, made_us: u64) -> LinkRecord {
        LinkRecord {
            id: format!("{by}-{n}"),
            request: ExportRequest::default(),
            by: by.to_owned(),
            made_us,
            end_us: made_us + LIFE_US,
            downloads: 0,
            last_us: 0,
        }
    }
}
