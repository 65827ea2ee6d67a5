//! Questions that are asked together, carried by one call of the backend.
//!
//! A call costs something whatever it carries: the way into the plugin and back, or a statement of a database. Callers who
//! are ready at the same time, as those of one connection often are, share it. The first of them leads: it lets everything
//! else that is ready go first, and then asks for all who have come meanwhile. Who is alone waits for nobody.
//!
//! A leader may go away before it has the answers. Then each of the others asks by itself; so this is for questions that may
//! be asked twice. The call is a part of the leader's trace.

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::backend::BackendError;

/// Where callers with questions of one kind meet.
pub struct Joined<Question, Answer> {
    /// Most questions that one call carries.
    most: usize,
    group: Mutex<Group<Question, Answer>>,
}

/// Those who have come since somebody leads; none where nobody does. No more than there are open calls, which
/// `grpc/room.rs` bounds.
type Group<Question, Answer> = Option<Vec<Waiting<Question, Answer>>>;

struct Waiting<Question, Answer> {
    question: Question,
    answer: oneshot::Sender<Reply<Answer>>,
}

type Reply<Answer> = Result<Answer, BackendError>;

impl<Question: Clone, Answer> Joined<Question, Answer> {
    /// Calls carry so many questions at most.
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            group: Mutex::new(None),
        }
    }

    /// Asks, together with whoever asks at the same time. `call` gives one answer per question, in their order.
    pub async fn ask<Call>(
        &self,
        question: Question,
        call: impl Fn(Vec<Question>) -> Call,
    ) -> Result<Answer, BackendError>
    where
        Call: Future<Output = Result<Vec<Answer>, BackendError>>,
    {
        let (answer, leading) = self.join(&question);
        if let Some(leading) = leading {
            tokio::task::yield_now().await;
            let mut waiting = leading.close();
            if waiting.len() == 1 {
                return only(call(vec![question]).await);
            }
            let mut calls = Vec::new();
            while !waiting.is_empty() {
                let rest = waiting.split_off(self.most.min(waiting.len()));
                calls.push(carry(waiting, &call));
                waiting = rest;
            }
            join_all(calls).await;
        }
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if !may_be_of_another(&error) => Err(error),
            // That, or the leader has gone away.
            _ => only(call(vec![question]).await),
        }
    }

    /// Where the answer comes; and the lead, where nobody has it.
    fn join(&self, question: &Question) -> (oneshot::Receiver<Reply<Answer>>, Option<Leading<'_, Question, Answer>>) {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting {
            question: question.clone(),
            answer,
        };
        let mut group = self.group.lock();
        if let Some(group) = &mut *group {
            group.push(waiting);
            return (receiver, None);
        }
        *group = Some(vec![waiting]);
        let leading = Leading {
            group: &self.group,
            is_closed: false,
        };
        (receiver, Some(leading))
    }
}

/// The lead of a group that others still join. Where it is dropped, they are told.
struct Leading<'a, Question, Answer> {
    group: &'a Mutex<Group<Question, Answer>>,
    is_closed: bool,
}

impl<Question, Answer> Leading<'_, Question, Answer> {
    /// Nobody joins any more.
    fn close(mut self) -> Vec<Waiting<Question, Answer>> {
        self.is_closed = true;
        self.group.lock().take().unwrap_or_default()
    }
}

impl<Question, Answer> Drop for Leading<'_, Question, Answer> {
    fn drop(&mut self) {
        if !self.is_closed {
            self.group.lock().take();
        }
    }
}

/// Makes a call for all of these, and tells them.
async fn carry<Question, Answer, Call>(waiting: Vec<Waiting<Question, Answer>>, call: &impl Fn(Vec<Question>) -> Call)
where
    Call: Future<Output = Result<Vec<Answer>, BackendError>>,
{
    let (questions, callers): (Vec<_>, Vec<_>) = waiting
        .into_iter()
        .map(|caller| (caller.question, caller.answer))
        .unzip();
    let error = match call(questions).await {
        Ok(answers) if answers.len() == callers.len() => {
            for (caller, answer) in callers.into_iter().zip(answers) {
                // One that has gone away does not hear of it.
                let _ = caller.send(Ok(answer));
            }
            return;
        }
        Ok(_) => wrong_number(),
        Err(error) => error,
    };
    for caller in callers {
        let _ = caller.send(Err(error.clone()));
    }
}

/// The one answer to one question.
pub(super) fn only<Answer>(answers: Result<Vec<Answer>, BackendError>) -> Result<Answer, BackendError> {
    answers?.pop().ok_or_else(wrong_number)
}

fn wrong_number() -> BackendError {
    BackendError::Internal("the store gave another number of answers than it was asked for".to_owned())
}

/// True where a call may have failed for what only one of its questions is about. The others then have an answer.
fn may_be_of_another(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::Exhausted(_) | BackendError::Corrupt(_) | BackendError::Internal(_)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    type Doubling = Joined<u32, u32>;

    /// Doubles numbers. A call takes a turn of the runtime, and is noted before.
    #[derive(Default)]
    struct Doubler {
        calls: Mutex<Vec<Vec<u32>>>,
        /// Calls wait for this.
        is_held: AtomicBool,
    }

    impl Doubler {
        async fn double(&self, numbers: Vec<u32>) -> Result<Vec<u32>, BackendError> {
            self.calls.lock().push(numbers.clone());
            tokio::task::yield_now().await;
            while self.is_held.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            if numbers.contains(&13) {
                return Err(BackendError::Corrupt("13".to_owned()));
            }
            if numbers.contains(&99) {
                return Err(BackendError::Unavailable("99".to_owned()));
            }
            Ok(numbers.into_iter().map(|number| 2 * number).collect())
        }

        fn sizes(&self) -> Vec<usize> {
            self.calls.lock().iter().map(Vec::len).collect()
        }
    }

    fn ask(
        joined: &Arc<Doubling>,
        doubler: &Arc<Doubler>,
        number: u32,
    ) -> tokio::task::JoinHandle<Result<u32, BackendError>> {
        let (joined, doubler) = (Arc::clone(joined), Arc::clone(doubler));
        tokio::spawn(async move { joined.ask(number, |numbers| doubler.double(numbers)).await })
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_shares_calls_and_gets_its_own_answer() {
        let (joined, doubler) = (Arc::new(Doubling::new(16)), Arc::new(Doubler::default()));
        for callers in [1, 2, 16, 40] {
            doubler.calls.lock().clear();
            let asked: Vec<_> = (20..20 + callers)
                .map(|number| ask(&joined, &doubler, number))
                .collect();
            for (number, asked) in (20..).zip(asked) {
                assert_eq!(asked.await.unwrap(), Ok(2 * number));
            }
            let sizes = doubler.sizes();
            assert_eq!(sizes.len(), callers.div_ceil(16) as usize, "{sizes:?}");
            assert!(sizes.iter().all(|&size| size <= 16), "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn what_fails_for_one_fails_for_no_other_and_what_fails_for_all_is_asked_once() {
        let (joined, doubler) = (Arc::new(Doubling::new(16)), Arc::new(Doubler::default()));
        let asked = [1, 13, 2].map(|number| ask(&joined, &doubler, number));
        let [first, second, third] = asked;
        assert_eq!(first.await.unwrap(), Ok(2));
        assert!(matches!(second.await.unwrap(), Err(BackendError::Corrupt(_))));
        assert_eq!(third.await.unwrap(), Ok(4));

        doubler.calls.lock().clear();
        for asked in [1, 99, 2].map(|number| ask(&joined, &doubler, number)) {
            assert!(matches!(asked.await.unwrap(), Err(BackendError::Unavailable(_))));
        }
        assert_eq!(doubler.sizes(), [3]);
    }

    #[tokio::test]
    async fn a_leader_that_goes_away_leaves_the_others_with_answers() {
        for during_the_call in [false, true] {
            let (joined, doubler) = (Arc::new(Doubling::new(16)), Arc::new(Doubler::default()));
            doubler.is_held.store(true, Ordering::Relaxed);
            let leader = ask(&joined, &doubler, 1);
            let others = [2, 3].map(|number| ask(&joined, &doubler, number));
            while joined.group.lock().as_ref().is_none_or(|group| group.len() < 3) {
                tokio::task::yield_now().await;
            }
            while during_the_call && doubler.calls.lock().is_empty() {
                tokio::task::yield_now().await;
            }
            leader.abort();
            assert!(leader.await.unwrap_err().is_cancelled());
            doubler.is_held.store(false, Ordering::Relaxed);
            for (number, other) in (2..).zip(others) {
                assert_eq!(other.await.unwrap(), Ok(2 * number));
            }
            let calls = std::mem::take(&mut *doubler.calls.lock());
            let mut expected = vec![vec![2], vec![3]];
            if during_the_call {
                expected.insert(0, vec![1, 2, 3]);
            }
            assert_eq!(calls, expected);
        }
    }
}
