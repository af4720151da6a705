//! Tests of the confirmation: single cases, and a machine with a random life beside one that knows the true time.

use super::Spans;
use super::confirmation::{Event, Look, STEADY_US, Verdict};
use crate::catalogue::records::{StepKind, TimeRecord};
use crate::clock::{Clocks, DAY_US, Day};

/// A machine whose clocks are made up, and what the server knows of them.
struct Machine {
    /// True time.
    true_us: u64,
    /// The wall clock minus true time.
    wrong_us: i64,
    boot_us: u64,
    run: u64,
    synchronised: Option<bool>,
    /// How far each agent's clock is from true time.
    agents_us: Vec<i64>,
    floor_us: u64,
    record: TimeRecord,
    spans: Spans,
}

impl Machine {
    fn new(true_us: u64) -> Self {
        Self {
            true_us,
            wrong_us: 0,
            boot_us: 1_000_000,
            run: 1,
            synchronised: Some(false),
            agents_us: Vec::new(),
            floor_us: 0,
            record: TimeRecord::default(),
            spans: Spans::default(),
        }
    }

    /// One that was confirmed a moment ago, and that nobody confirms from now on.
    fn confirmed() -> Self {
        let mut machine = Self::new(NOW_US);
        machine.synchronised = Some(true);
        assert_eq!(machine.look().0, Verdict::Kernel);
        machine.synchronised = Some(false);
        assert_eq!(machine.look().0, Verdict::Still);
        machine
    }

    fn wall_us(&self) -> u64 {
        self.true_us.saturating_add_signed(self.wrong_us)
    }

    fn look(&mut self) -> (Verdict, Vec<Event>) {
        let look = Look {
            clocks: Clocks {
                wall_us: self.wall_us(),
                boot_us: self.boot_us,
                run: format!("{}", self.run),
                synchronised: self.synchronised,
            },
            agents_us: self
                .agents_us
                .iter()
                .map(|wrong_us| self.true_us.saturating_add_signed(*wrong_us))
                .collect(),
            floor_us: self.floor_us,
            wait_us: DAY_US,
        };
        let (verdict, events) = self.record.look(&look);
        for event in &events {
            if let Event::Caught(span) = event {
                self.spans.add(*span);
            }
        }
        (verdict, events)
    }

    /// Time passes, with a look every ten minutes.
    fn pass(&mut self, us: u64) {
        for _ in 0..us / LOOK_US {
            self.true_us += LOOK_US;
            self.boot_us += LOOK_US;
            self.look();
        }
        self.true_us += us % LOOK_US;
        self.boot_us += us % LOOK_US;
        self.look();
    }

    /// The machine is off for so long, and its clock is then so wrong.
    fn restart(&mut self, off_us: u64, wrong_us: i64) {
        self.true_us += off_us;
        self.wrong_us = wrong_us;
        self.boot_us = 20_000_000;
        self.run += 1;
    }

    fn server_us(&self) -> u64 {
        self.record.server_us(self.boot_us)
    }

    /// The day on which something may be deleted now.
    fn today(&self) -> Option<Day> {
        let waits = self.record.wait_left_us(self.boot_us, DAY_US).is_some();
        let is_confirmed = self.record.is_confirmed && !waits;
        is_confirmed.then(|| Day::of(self.record.confirmed_us))
    }
}

/// A machine whose clock goes a little further at each of many starts, and a kernel that says it is right.
#[test]
fn many_short_times_off_count_together_and_a_machine_that_runs_as_long_has_them() {
    let mut machine = Machine::confirmed();
    machine.synchronised = Some(true);
    let mut steps = 0;
    for _ in 0..20 {
        machine.wrong_us += 23 * HOUR_US as i64;
        let wrong_us = machine.wrong_us;
        machine.restart(1_000_000, wrong_us);
        let (_, events) = machine.look();
        steps += events
            .iter()
            .filter(|event| matches!(event, Event::Stepped(_)))
            .count();
    }
    assert!(steps >= 9, "{steps}");
    assert_eq!(machine.today(), None);

    // Twelve hours off, twelve on, for a month: nobody is to confirm anything.
    let mut machine = Machine::confirmed();
    machine.synchronised = Some(true);
    for _ in 0..30 {
        machine.pass(12 * HOUR_US);
        machine.restart(12 * HOUR_US, 0);
        let (_, events) = machine.look();
        assert!(
            !events
                .iter()
                .any(|event| matches!(event, Event::Stepped(_))),
            "{events:?}"
        );
        assert!(machine.today().is_some());
    }
}

#[test]
fn a_clock_set_far_forward_moves_nothing_and_back_again_neither() {
    let mut machine = Machine::confirmed();
    machine.wrong_us = days(400);
    let (verdict, events) = machine.look();
    assert_eq!(verdict, Verdict::Nobody { left_us: DAY_US });
    let [Event::Stepped(step)] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(step.kind, StepKind::Set);
    assert_eq!(step.expected_us, machine.true_us);
    assert_eq!(step.shown_us, machine.wall_us());
    machine.pass(23 * HOUR_US);
    assert_eq!(machine.server_us(), machine.true_us);
    assert_eq!(machine.today(), None);
    machine.wrong_us = 0;
    // Nobody says anything: it has to run a day.
    assert!(matches!(machine.look().0, Verdict::Nobody { .. }));
    machine.pass(DAY_US - LOOK_US);
    assert_eq!(machine.today(), None);
    machine.pass(LOOK_US);
    assert_eq!(machine.today(), Some(Day::of(machine.true_us)));
    assert!(machine.spans.list().is_empty());
}

#[test]
fn a_clock_set_far_back_is_never_believed_and_labels_nothing() {
    let mut machine = Machine::confirmed();
    machine.wrong_us = days(-400);
    machine.synchronised = Some(true);
    assert!(matches!(machine.look().0, Verdict::Behind { .. }));
    machine.pass(3 * DAY_US);
    assert_eq!(machine.today(), None);
    assert_eq!(machine.server_us(), machine.true_us);
    machine.wrong_us = 0;
    assert_eq!(machine.look().0, Verdict::Kernel);
    // Confirmed at once; deletion waits all the same.
    assert_eq!(machine.today(), None);
    machine.pass(DAY_US);
    assert_eq!(machine.today(), Some(Day::of(machine.true_us)));
}

#[test]
fn a_right_correction_is_followed_after_the_wait_and_ages_count_from_the_true_day() {
    let mut machine = Machine::new(NOW_US);
    machine.wrong_us = days(-3);
    machine.look();
    machine.pass(STEADY_US);
    assert!(machine.record.is_confirmed);
    let received_us = machine.server_us();
    machine.wrong_us = 0;
    machine.synchronised = Some(true);
    let held_from_us = machine.server_us();
    assert_eq!(machine.look().0, Verdict::Held { left_us: DAY_US });
    machine.pass(DAY_US / 2);
    let (labelled_us, truly) = (machine.server_us(), Day::of(machine.true_us));
    machine.pass(DAY_US / 2);
    assert_eq!(machine.server_us(), machine.true_us);
    assert_eq!(machine.spans.day_of_receipt(labelled_us), truly);
    assert!(machine.spans.counted_from(Day::of(labelled_us)) >= truly);
    assert!(machine.spans.list()[0].from_us >= held_from_us);
    assert_eq!(
        machine.spans.day_of_receipt(received_us - 1),
        Day::of(received_us)
    );
}

#[test]
fn a_start_with_a_dead_clock_goes_on_where_it_stood_until_it_is_set() {
    let mut machine = Machine::confirmed();
    let stood_us = machine.server_us();
    machine.restart(40 * DAY_US, -(NOW_US as i64));
    let (verdict, events) = machine.look();
    assert!(matches!(verdict, Verdict::Behind { .. }));
    assert!(
        matches!(events[..], [Event::Stepped(step), Event::Doubted] | [Event::Stepped(step)] if step.kind == StepKind::Behind),
        "{events:?}"
    );
    machine.pass(HOUR_US);
    let labelled_us = machine.server_us();
    assert_eq!(labelled_us, stood_us + HOUR_US);
    let truly = Day::of(machine.true_us);
    machine.wrong_us = 0;
    machine.synchronised = Some(true);
    assert_eq!(machine.look().0, Verdict::Kernel);
    assert_eq!(machine.server_us(), machine.true_us);
    assert_eq!(machine.spans.day_of_receipt(labelled_us), truly);
    assert_eq!(machine.today(), None);
    machine.pass(DAY_US);
    assert_eq!(machine.today(), Some(Day::of(machine.true_us)));
}

#[test]
fn a_long_absence_waits_and_a_short_one_does_not() {
    for (off_us, waits) in [(HOUR_US, false), (40 * DAY_US, true)] {
        let mut machine = Machine::confirmed();
        machine.restart(off_us, 0);
        machine.synchronised = Some(true);
        assert_eq!(machine.look().0, Verdict::Kernel);
        assert_eq!(machine.today().is_none(), waits);
        assert_eq!(machine.server_us(), machine.true_us);
    }
}

#[test]
fn a_suspend_is_no_step() {
    let mut machine = Machine::confirmed();
    machine.true_us += 3 * DAY_US;
    machine.boot_us += 3 * DAY_US;
    assert_eq!(machine.look(), (Verdict::Still, Vec::new()));
    assert_eq!(machine.today(), Some(Day::of(machine.true_us)));
}

#[test]
fn five_seconds_are_no_step_and_a_microsecond_more_is() {
    for (us, stepped) in [(5_000_000, false), (5_000_001, true), (-5_000_001, true)] {
        let mut machine = Machine::confirmed();
        machine.wrong_us = us;
        assert_eq!(machine.look().1.is_empty(), !stepped, "{us}");
    }
    // Small corrections one after the other are no way around.
    let mut machine = Machine::confirmed();
    machine.wrong_us = 3_000_000;
    assert!(machine.look().1.is_empty());
    machine.wrong_us = 6_000_000;
    assert!(!machine.look().1.is_empty());
}

#[test]
fn three_agents_confirm_and_veto_and_two_do_neither() {
    let far = days(1);
    for (agents, verdict) in [
        (vec![far, far], None),
        (vec![0, 0], None),
        (vec![0, 0, far], Some(true)),
        (vec![0, far, far], Some(false)),
        (vec![0, far, far, 0, 0], Some(true)),
    ] {
        let mut machine = Machine::new(NOW_US);
        machine.agents_us = agents.clone();
        let without = machine.look().0;
        match verdict {
            None => assert!(matches!(without, Verdict::Nobody { .. }), "{agents:?}"),
            Some(says) => assert_eq!(without.is_confirmed(), says, "{agents:?}"),
        }
        // They are heard before the kernel.
        machine.synchronised = Some(true);
        let with_kernel = machine.look().0.is_confirmed();
        assert_eq!(with_kernel, verdict != Some(false), "{agents:?}");
    }
}

/// A server that is started again knows no agent for a moment: what they said before still counts.
#[test]
fn a_contradiction_outlives_the_agents_that_made_it() {
    let mut machine = Machine::confirmed();
    machine.wrong_us = days(400);
    machine.synchronised = Some(true);
    machine.agents_us = vec![0, 0, 0];
    machine.pass(3 * DAY_US);
    assert!(matches!(machine.look().0, Verdict::Contradicted { .. }));
    machine.agents_us = vec![0, 0];
    assert_eq!(machine.look().0, Verdict::Unheard { left_us: DAY_US });
    machine.restart(HOUR_US, days(400));
    machine.pass(DAY_US - LOOK_US);
    assert!(matches!(machine.look().0, Verdict::Unheard { .. }));
    machine.wrong_us = 0;
    machine.agents_us = vec![0, 0, 0];
    assert_eq!(machine.look().0, Verdict::Held { left_us: DAY_US });
    machine.pass(DAY_US);
    assert_eq!(machine.look().0, Verdict::Kernel);
    assert_eq!(machine.server_us(), machine.true_us);
}

#[test]
fn what_a_time_stamp_says_is_certain() {
    let mut machine = Machine::confirmed();
    machine.floor_us = machine.true_us + HOUR_US;
    let (verdict, events) = machine.look();
    assert!(matches!(verdict, Verdict::Behind { .. }));
    assert_eq!(events, [Event::Doubted]);
    machine.pass(HOUR_US);
    assert!(matches!(machine.look().0, Verdict::Nobody { .. }));
    machine.pass(STEADY_US);
    assert!(machine.record.is_confirmed);
}

#[test]
fn a_new_volume_follows_the_clock_until_it_is_confirmed() {
    let mut machine = Machine::new(NOW_US);
    machine.wrong_us = -(NOW_US as i64) + 1_000_000;
    machine.pass(HOUR_US);
    let labelled_us = machine.server_us();
    let truly = Day::of(machine.true_us);
    assert_eq!(Day::of(labelled_us), Day(0));
    machine.wrong_us = 0;
    machine.look();
    assert_eq!(machine.server_us(), machine.true_us);
    assert_eq!(machine.spans.day_of_receipt(labelled_us - 1), truly);
    // It follows a clock that may be right nowhere, not even then.
    let mut machine = Machine::new(NOW_US);
    machine.look();
    machine.wrong_us = days(400);
    machine.look();
    assert_eq!(machine.server_us(), machine.true_us);
    // A dead clock is never believed, however steadily it runs.
    let mut machine = Machine::new(NOW_US);
    machine.wrong_us = -(NOW_US as i64);
    machine.look();
    machine.pass(3 * STEADY_US);
    assert!(matches!(machine.look().0, Verdict::Behind { .. }));
    // One that ran ahead goes back once it is confirmed.
    let mut machine = Machine::new(NOW_US);
    machine.wrong_us = days(400);
    machine.look();
    machine.wrong_us = 0;
    machine.synchronised = Some(true);
    assert!(matches!(machine.look().0, Verdict::Held { .. }));
    machine.pass(DAY_US - LOOK_US);
    machine.true_us += LOOK_US;
    machine.boot_us += LOOK_US;
    assert!(machine.look().1.contains(&Event::WentBack));
    assert_eq!(machine.server_us(), machine.true_us);
}

/// A thousand machines, each for a year: what they received is deleted when its days are over in true time, never
/// before, and in the end all of it.
#[test]
fn random_lives_delete_nothing_early_and_everything_at_last() {
    let mut waited = 0;
    for seed in 0..1000 {
        let mut random = Random(seed);
        let mut machine = Machine::new(NOW_US);
        let witnesses = random.below(3);
        machine.synchronised = Some(witnesses == 1);
        if witnesses == 2 {
            machine.agents_us = vec![0, 1_000_000, days(2), -40_000_000];
        }
        machine.pass(2 * DAY_US);
        let mut held: Vec<(u64, u64)> = Vec::new();
        let mut last_us = 0;
        for _ in 0..200 {
            match random.below(10) {
                // A wrong clock lasts less than a day: nobody could tell it from the right one after that.
                0 => {
                    machine.wrong_us = random.error_us();
                    // A wrong source of time has the kernel say that all is well.
                    machine.synchronised = Some(random.below(2) == 0);
                    let for_us = random.below(23 * HOUR_US);
                    machine.pass(for_us / 2);
                    receive(&mut machine, &mut held, &mut last_us);
                    delete(&machine, &mut held);
                    machine.pass(for_us / 2);
                    machine.wrong_us = 0;
                    machine.synchronised = Some(witnesses == 1);
                    machine.look();
                }
                1 => {
                    let off_us = random.below(20 * DAY_US);
                    let dead = random.below(2) == 0;
                    let wrong_us = if dead { -(machine.wall_us() as i64) } else { 0 };
                    machine.restart(off_us, wrong_us);
                    machine.synchronised = Some(false);
                    machine.look();
                    receive(&mut machine, &mut held, &mut last_us);
                    delete(&machine, &mut held);
                    machine.pass(random.below(2 * HOUR_US));
                    machine.wrong_us = 0;
                    machine.synchronised = Some(witnesses == 1);
                    machine.look();
                }
                2 => {
                    let us = random.below(3 * DAY_US);
                    machine.true_us += us;
                    machine.boot_us += us;
                    machine.look();
                }
                _ => machine.pass(random.below(3 * DAY_US)),
            }
            receive(&mut machine, &mut held, &mut last_us);
            delete(&machine, &mut held);
            waited += u64::from(machine.today().is_none());
        }
        machine.pass((KEPT_DAYS + 25) * DAY_US);
        delete(&machine, &mut held);
        assert!(held.is_empty(), "seed {seed}: {} entries stay", held.len());
    }
    assert!(waited > 1000, "{waited} looks waited");
}

/// Something is received: it carries server time, which never goes back.
fn receive(machine: &mut Machine, held: &mut Vec<(u64, u64)>, last_us: &mut u64) {
    machine.look();
    let server_us = machine.server_us();
    assert!(server_us + 5_000_000 >= *last_us, "server time went back");
    assert!(
        server_us <= machine.true_us + 5_000_000,
        "server time runs ahead of true time"
    );
    *last_us = server_us;
    held.push((server_us, machine.true_us));
}

/// What is due is deleted, as the archive would: by groups of one day.
fn delete(machine: &Machine, held: &mut Vec<(u64, u64)>) {
    let Some(today) = machine.today() else {
        return;
    };
    held.retain(|&(label_us, true_us)| {
        let received = machine.spans.counted_from(Day::of(label_us));
        let due = u64::from(today.0) > u64::from(received.0) + KEPT_DAYS;
        let age_us = machine.true_us - true_us;
        assert!(
            !due || age_us > KEPT_DAYS * DAY_US,
            "deleted after {age_us} µs, run {}: {label_us} {true_us}",
            machine.run
        );
        !due
    });
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn error_us(&mut self) -> i64 {
        let some = [
            days(400),
            days(-400),
            days(1) + 7_200_000_000,
            -3_600_000_000,
        ];
        some[usize::try_from(self.below(4)).unwrap()]
    }
}

fn days(days: i64) -> i64 {
    days * DAY_US.cast_signed()
}

const NOW_US: u64 = 1_800_000_000_000_000;
const HOUR_US: u64 = 3_600_000_000;
const LOOK_US: u64 = 600_000_000;
const KEPT_DAYS: u64 = 30;
