//! What is counted, ended, told and kept of alarms.

use super::*;
use crate::archive::troubles::Trouble;
use crate::audit::Audit;

#[test]
fn what_comes_from_many_addresses_is_one_alarm_with_the_first_and_the_last() {
    let alarms = alarms("many");
    for n in 0..61_u8 {
        let from = IpAddr::from([192, 0, 2, n]);
        let said = alarms.note(&raise("refused"), Some(from));
        assert_eq!(said.is_some(), (u64::from(n) + 1).is_power_of_two());
    }
    let list = alarms.list();
    let [alarm] = list.as_slice() else {
        panic!("{list:?}")
    };
    assert_eq!(alarm.count, 61);
    assert_eq!(
        alarm.said(Language::En),
        "refused It came from 61 addresses, first from 192.0.2.0, last from 192.0.2.60."
    );
    for n in 0..1000_u16 {
        let [high, low] = n.to_be_bytes();
        alarms.note(&raise("refused"), Some(IpAddr::from([198, 51, high, low])));
    }
    let alarm = alarms.list().remove(0);
    assert_eq!(alarm.addresses.len(), ADDRESSES_MAX);
    assert!(
        alarm
            .said(Language::En)
            .contains("more than 100 addresses, first from 192.0.2.0, last from 198.51.3.231.")
    );
    // The count of a restart is behind by a factor of two at most.
    let Alarms {
        catalogue, trail, ..
    } = alarms;
    let again = Alarms::load(catalogue, trail).unwrap();
    assert_eq!(again.list().remove(0).count, 1024);
}

#[test]
fn the_text_of_an_alarm_is_bounded() {
    let alarms = alarms("long");
    let Noted(alarm, _) = alarms.note(&raise(&"x".repeat(100_000)), None).unwrap();
    assert!(alarm.text.len() <= ALARM_LEN_MAX + '…'.len_utf8());
}

#[tokio::test]
async fn an_alarm_has_the_text_of_now_is_over_by_itself_and_is_new_the_next_time() {
    let alarms = alarms("live");
    alarms.note(&raise("since 17:17."), None);
    alarms.note(&raise("since 17:26."), None);
    let [alarm] = alarms.list().try_into().unwrap();
    assert_eq!(
        (alarm.said(Language::En).as_str(), alarm.count),
        ("since 17:26.", 2)
    );
    alarms
        .end(AlarmKind::TokenRefused, "", said!("over.backup"))
        .await;
    let ended = alarms.list().remove(0);
    assert!(ended.is_over() && !ended.is_standing() && ended.acknowledged_by.is_none());
    assert_eq!(
        ended.over(Language::It).unwrap(),
        Language::It.text("over.backup")
    );
    alarms.note(&raise("since 18:00."), None);
    let list = alarms.list();
    assert_eq!((list.len(), list[0].count), (2, 1));
    // Seen by somebody it is not new, and it still can be over.
    alarms.acknowledge(list[0].id, "anna").unwrap();
    assert!(!alarms.list()[0].is_standing());
    assert_eq!(alarms.lasting(AlarmKind::TokenRefused).len(), 1);
    alarms
        .end(AlarmKind::TokenRefused, "", said!("over.backup"))
        .await;
    assert!(alarms.lasting(AlarmKind::TokenRefused).is_empty());
}

#[test]
fn what_an_earlier_version_wrote_is_shown() {
    let old = r#"{"id":7,"kind":"agent-silent","agent":"web1","text":"nothing was heard of vm","key":"",
        "first_us":1,"last_us":2,"count":3,"acknowledged_by":null,"acknowledged_us":0}"#;
    let mut old: AlarmRecord = serde_json::from_str(old).unwrap();
    assert!(old.is_standing());
    assert_eq!(old.said(Language::En), "nothing was heard of vm");
    assert!(old.said(Language::It).contains("nothing was heard of vm"));
    // What it called seen by the server was over.
    old.acknowledged_by = Some(OWN_NAME.to_owned());
    assert!(old.is_over());
}

#[test]
fn what_did_not_leave_before_a_stop_leaves_after_it() {
    let alarms = alarms("untold");
    alarms.note(&raise("one"), None);
    assert_eq!(alarms.take_news().len(), 1);
    assert!(alarms.take_news().is_empty());
    let Alarms {
        catalogue, trail, ..
    } = alarms;
    let again = Alarms::load(catalogue.clone(), trail.clone()).unwrap();
    let untold = again.untold("mail", "mail");
    assert_eq!(untold.len(), 1);
    again.told(&untold[&AlarmKind::TokenRefused].ids, "mail");
    let again = Alarms::load(catalogue, trail).unwrap();
    assert!(
        again.untold("mail", "mail").is_empty() && !again.untold("webhook", "webhook").is_empty()
    );
}

#[test]
fn each_kind_and_each_trouble_has_its_words_in_each_language() {
    for t in Language::ALL {
        for kind in AlarmKind::ALL {
            assert_ne!(
                t.text(&format!("alarm.{}", kind.name())),
                "?",
                "{}",
                kind.name()
            );
        }
        for trouble in Trouble::ALL {
            assert_ne!(t.text(&format!("trouble.{}", trouble.name())), "?");
        }
        for severity in Severity::ALL {
            assert_ne!(t.text(&format!("severity.{}", severity.name())), "?");
        }
    }
}

#[test]
fn the_first_address_keeps_its_place() {
    let alarms = alarms("first");
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1"] {
        alarms.note(&raise("refused."), Some(address.parse().unwrap()));
    }
    let said = alarms.list().remove(0).said(Language::En);
    assert!(
        said.ends_with("from 2 addresses, first from 127.0.0.1, last from 127.0.0.1."),
        "{said}"
    );
    alarms.note(&raise("refused."), Some("127.0.0.3".parse().unwrap()));
    let said = alarms.list().remove(0).said(Language::En);
    assert!(
        said.ends_with("from 3 addresses, first from 127.0.0.1, last from 127.0.0.3."),
        "{said}"
    );
}

/// An agent that made up sources made the alarms of everybody else go.
#[test]
fn whoever_raises_very_many_makes_room_among_them() {
    let alarms = alarms("crowd");
    alarms.note(&raise("a token of somebody else"), None);
    for n in 0..2 * ALARMS_MAX {
        let made_up = Raise {
            kind: AlarmKind::SourceTrouble,
            agent: "evil1".into(),
            text: Said::from("made up"),
            key: n.to_string(),
        };
        alarms.note(&made_up, None);
    }
    let list = alarms.list();
    assert_eq!(list.len(), ALARMS_MAX);
    let stays = |alarm: &&AlarmRecord| alarm.kind == AlarmKind::TokenRefused;
    assert_eq!(list.iter().filter(stays).count(), 1);
    let made_up = list.iter().filter(|alarm| !stays(alarm));
    let newest = made_up.map(|alarm| alarm.id).max();
    assert_eq!(newest, list.iter().map(|alarm| alarm.id).max());
}

/// What lasts and was seen is told anew when it is forgotten; what is over is not.
#[tokio::test]
async fn what_is_over_makes_room_before_what_was_seen_and_lasts() {
    let alarms = alarms("room");
    let of = |key: usize| Raise {
        key: key.to_string(),
        ..raise("x")
    };
    alarms.note(&of(0), None);
    alarms.acknowledge(1, "anna").unwrap();
    for n in 1..ALARMS_MAX {
        alarms.note(&of(n), None);
    }
    let over = ALARMS_MAX / 2;
    let why = said!("over.backup");
    alarms
        .end_of(AlarmKind::TokenRefused, "", &over.to_string(), why)
        .await;
    let keys = || -> BTreeSet<String> { alarms.list().into_iter().map(|it| it.key).collect() };
    alarms.note(&of(ALARMS_MAX), None);
    assert!(keys().contains("0") && !keys().contains(&over.to_string()));
    // None is over any more: what somebody has seen goes before what nobody has.
    alarms.note(&of(ALARMS_MAX + 1), None);
    assert!(!keys().contains("0") && keys().contains("1"));
    assert_eq!(keys().len(), ALARMS_MAX);
}

fn raise(text: &str) -> Raise {
    Raise {
        kind: AlarmKind::TokenRefused,
        agent: String::new(),
        text: Said::from(text.to_owned()),
        key: String::new(),
    }
}

fn alarms(name: &str) -> Alarms {
    let name = format!("scrinium-alarms-{name}-{}.db", std::process::id());
    let path = std::env::temp_dir().join(name);
    drop(std::fs::remove_file(&path));
    let key = scrinium_protocol::secret::Secret::new([1; 32]);
    let catalogue = Arc::new(Catalogue::create(&path, &key).unwrap());
    let (queue, _entries) = tokio::sync::mpsc::channel(1);
    let trail = Unsaid::new(Audit::new(queue), Arc::default());
    Alarms::load(catalogue, Arc::new(trail)).unwrap()
}

/// A server that is restarted raises again what lasts: who has seen it is not told anew.
#[tokio::test]
async fn what_lasts_and_was_seen_is_no_new_alarm_and_its_end_is_in_the_trail() {
    let alarms = alarms("lasts");
    let lasting = |kind, text: &str| Raise {
        kind,
        agent: "web1".into(),
        ..raise(text)
    };
    for kind in [AlarmKind::AgentSilent, AlarmKind::AgentTrouble] {
        alarms.note(&lasting(kind, "one"), None);
    }
    alarms.note(&raise("a token"), None);
    for alarm in alarms.list() {
        alarms.acknowledge(alarm.id, "anna").unwrap();
    }
    alarms.take_news();
    let Alarms {
        catalogue, trail, ..
    } = alarms;
    let again = Alarms::load(catalogue, trail).unwrap();
    again.note(&lasting(AlarmKind::AgentSilent, "since another time"), None);
    again.note(&lasting(AlarmKind::AgentTrouble, "one"), None);
    assert_eq!(again.list().len(), 3);
    assert!(again.take_news().is_empty(), "nobody is told");
    // Another trouble is news, and so is what does not last.
    again.note(&lasting(AlarmKind::AgentTrouble, "two"), None);
    again.note(&raise("a token"), None);
    assert_eq!(again.list().len(), 5);
    assert_eq!(again.take_news().len(), 2);
    // The trail hears of the end, seen or not: here it takes nothing, and that waits.
    let over = said!("over.heard", "now");
    again.end(AlarmKind::AgentSilent, "web1", over).await;
    let waiting = again.trail.take();
    let [ended] = &*waiting else {
        panic!("{waiting:?}")
    };
    assert_eq!(ended.action, "alarm ended");
}

/// What happens between the start and the first message is told once.
#[test]
fn what_is_news_is_not_untold_besides() {
    let alarms = alarms("once");
    alarms.note(&raise("one"), None);
    assert!(alarms.untold("mail", "mail").is_empty());
    assert_eq!(alarms.take_news().len(), 1);
    // It did not leave.
    assert_eq!(alarms.untold("mail", "mail").len(), 1);
    // An earlier version remembered the way, and not to whom.
    alarms.told(&BTreeSet::from([1]), "mail");
    assert!(alarms.untold("mail ops@example.org", "mail").is_empty());
}
