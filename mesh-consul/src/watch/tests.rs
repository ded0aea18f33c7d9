use std::sync::Mutex;

use super::*;
use crate::{
    client::{Answer, Error, HealthOf},
    testing::{agent, list, reply, run, web},
};

type Data = Vec<u8>;

struct World {
    track: Track<Data>,
    now: Instant,
}

fn answer(index: u64, data: &[u8]) -> Answer<Data> {
    Answer { data: data.to_vec(), index, has_leader: true, filtered: false }
}

impl World {
    fn new() -> Self {
        Self { track: Track::new(Pace::default()), now: Instant::now() }
    }

    /// The state after an answer, in short.
    fn answered(&mut self, answer: Answer<Data>) -> String {
        let state = self.track.answered(answer, self.now);
        self.show(state)
    }

    fn failed(&mut self) -> String {
        let state = self.track.failed(&Error::NoIndex, self.now, 1.0);
        self.show(state)
    }

    fn show(&self, state: Option<State<Data>>) -> String {
        match state {
            None => "same".into(),
            Some(State::Fresh(data)) => format!("fresh {data:?}"),
            Some(State::Stale { last, why, .. }) => {
                let why =
                    if let Why::Failed(_) = why { "failed".into() } else { format!("{why:?}") };
                format!("{why} {:?}", last.as_deref())
            }
        }
    }

    fn pause(&self) -> u64 {
        self.track.not_before().map_or(0, |at| (at - self.now).as_secs())
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self
    }
}

#[test]
fn an_answer_is_told_once() {
    let mut world = World::new();
    assert_eq!(world.answered(answer(5, &[1])), "fresh [1]");
    assert_eq!(world.track.index(), Some(5));
    assert_eq!(world.answered(answer(6, &[1])), "same");
    assert_eq!(world.answered(answer(7, &[1, 2])), "fresh [1, 2]");
    assert_eq!((world.track.index(), world.pause()), (Some(7), 0));
}

#[test]
fn an_index_that_goes_back_or_is_zero_starts_anew() {
    let mut world = World::new();
    world.answered(answer(50, &[1]));
    assert_eq!(world.answered(answer(3, &[2])), "fresh [2]");
    assert_eq!(world.track.index(), None);
    world.answered(answer(3, &[2]));
    assert_eq!(world.track.index(), Some(3));
    let mut world = World::new();
    world.answered(answer(0, &[1]));
    assert_eq!(world.track.index(), Some(1), "0 would not block");
}

#[test]
fn errors_keep_what_was_known_and_pause_longer_each_time() {
    let mut world = World::new();
    assert_eq!(world.failed(), "failed None");
    world.answered(answer(5, &[1]));
    let mut pauses = Vec::new();
    assert_eq!(world.failed(), "failed Some([1])");
    for _ in 0..8 {
        pauses.push(world.pause());
        assert_eq!(world.failed(), "same");
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30]);
    assert_eq!(world.track.index(), None);
    assert_eq!(world.answered(answer(5, &[1])), "fresh [1]");
    assert_eq!(world.pause(), 0);
}

#[test]
fn a_list_that_empties_is_asked_for_again_before_it_counts() {
    let mut world = World::new();
    world.answered(answer(5, &[1]));
    assert_eq!(world.answered(answer(6, &[])), "Emptied Some([1])");
    assert_eq!((world.track.index(), world.pause()), (None, 5));
    assert_eq!(world.after(4).answered(answer(6, &[])), "same");
    assert_eq!(world.after(1).answered(answer(6, &[])), "fresh []");
    assert_eq!(world.answered(answer(7, &[])), "same");
    world.answered(answer(8, &[1]));
    world.answered(answer(9, &[]));
    assert_eq!(world.after(5).answered(answer(9, &[1])), "fresh [1]", "it was not so");
    assert_eq!(world.answered(answer(10, &[])), "Emptied Some([1])", "held anew");
}

#[test]
fn a_rebuilt_server_has_time_to_be_told() {
    let mut world = World::new();
    world.answered(answer(500, &[1]));
    world.failed();
    assert_eq!(world.answered(answer(9, &[])), "Emptied Some([1])");
    for _ in 0..23 {
        assert_eq!(world.pause(), 5, "it is looked again and again");
        assert_eq!(world.after(5).answered(answer(9, &[])), "same");
    }
    assert_eq!(world.after(5).answered(answer(9, &[])), "fresh []");
    // What it was told of part by part counts at once.
    world.answered(answer(500, &[1, 2]));
    assert_eq!(world.answered(answer(9, &[2])), "fresh [2]");
}

#[test]
fn what_access_control_or_no_leader_may_have_emptied_never_counts() {
    let doubtful = [
        ("Filtered", Answer { filtered: true, ..answer(6, &[]) }),
        ("NoLeader", Answer { has_leader: false, ..answer(6, &[]) }),
    ];
    for (why, doubtful) in doubtful {
        let mut world = World::new();
        assert_eq!(world.answered(doubtful.clone()), format!("{why} None"));
        world.answered(answer(5, &[1]));
        assert_eq!(world.answered(doubtful.clone()), format!("{why} Some([1])"));
        for _ in 0..100 {
            assert!(world.pause() > 0);
            assert_eq!(world.after(60).answered(doubtful.clone()), "same");
        }
        // Some of it may be missing; what is there is there.
        let some = Answer { data: vec![2], ..doubtful };
        assert_eq!(world.answered(some), "fresh [2]");
    }
}

#[test]
fn since_is_when_it_began() {
    let mut world = World::new();
    world.answered(answer(5, &[1]));
    let began = world.now;
    world.failed();
    world.after(60);
    let Some(State::Stale { since, why, .. }) =
        world.track.answered(Answer { filtered: true, ..answer(6, &[]) }, world.now)
    else {
        panic!()
    };
    assert_eq!((since, why), (began, Why::Filtered));
}

fn quick() -> Pace {
    let ms = Duration::from_millis;
    Pace {
        wait: Duration::from_secs(60),
        churn: ms(1),
        backoff: ms(1),
        backoff_max: ms(5),
        hold: ms(10),
        rebuilt: ms(20),
    }
}

/// Follows `web` at an agent that says one thing after the other and then nothing;
/// returns the states.
fn states(script: Vec<crate::testing::Reply>, count: usize) -> (Vec<String>, Vec<String>) {
    run(async {
        let mut script = script.into_iter();
        let (client, asked) = agent(move |_| script.next().flatten()).await;
        let (told, done) = (Mutex::new(Vec::new()), tokio::sync::Notify::new());
        let tell = |state: State<Vec<crate::wire::ServiceEntry>>| {
            let nodes = state.data().map(|data| {
                data.iter().map(|entry| entry.node.node.clone()).collect::<Vec<_>>().join(" ")
            });
            let kind = if state.stale().is_some() { "stale" } else { "fresh" };
            let mut told = told.lock().unwrap();
            told.push(format!("{kind} {}", nodes.unwrap_or_else(|| "?".into())));
            if told.len() == count {
                done.notify_one();
            }
        };
        let query = HealthOf { service: "web".into(), ..HealthOf::default() };
        let pace = quick();
        tokio::select! {
            never = follow(&client, &query, &pace, tell) => match never {},
            () = done.notified() => {}
        }
        let lines = asked.lock().unwrap().iter().map(|asked| asked.line.clone()).collect();
        (told.into_inner().unwrap(), lines)
    })
}

#[test]
fn a_list_is_followed_through_everything_that_befalls_it() {
    let (told, lines) = states(
        vec![
            list(5, &web(&["a"])),
            list(9, &web(&["a", "b"])),
            reply(500, &[], "No cluster leader"),
            reply(403, &[], "Permission denied"),
            reply(429, &[], ""),
            list(2, &web(&["b"])),
            list(2, &web(&["b"])),
            list(3, &web(&["c"])),
        ],
        7,
    );
    let expected =
        ["fresh a", "fresh a b", "stale a b", "stale a b", "stale a b", "fresh b", "fresh c"];
    assert_eq!(told, expected);
    let blocks: Vec<_> = lines
        .iter()
        .map(|line| line.split('&').find_map(|pair| pair.strip_prefix("index=")).unwrap_or("-"))
        .collect();
    assert_eq!(&blocks[..8], ["-", "5", "9", "-", "-", "-", "-", "2"]);
}

#[test]
fn a_body_that_breaks_off_removes_nothing() {
    let cut =
        Some("HTTP/1.1 200 x\r\nx-consul-index: 6\r\ncontent-length: 99\r\n\r\n[]".to_owned());
    let (told, _) = states(vec![list(5, &web(&["a"])), cut, list(6, &web(&["b"]))], 3);
    assert_eq!(told, ["fresh a", "stale a", "fresh b"]);
}
