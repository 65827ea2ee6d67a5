//! Questions that are asked together, carried by one call of the backend.
//!
//! A call costs something whatever it carries: the way into the plugin and back, or a statement of a database. Callers who
//! are ready at the same time, as those of one connection often are, share it. The first of them leads: it lets everything
//! else that is ready go first, and then asks for all who have come meanwhile. Who is alone waits for nobody.
//!
//! Whoever shares a call shall not suffer from another one's question. So each asks by itself, a second time, where the call
//! has failed for what may be one question's fault, or takes longer than [`PATIENCE`]; the shared call goes on, and what is answered
//! first is taken. No more than [`ALONE`] such calls are under way, so that a store which is slow, or fails, for all is not asked that
//! much more: who has no turn in time is content with the shared call.
//!
//! A call for several is a task of its own, which goes on when its leader goes away, and ends when all have; it is a part of the
//! leader's trace. A leader that goes away before it has asked leaves each of the others to ask by itself.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tracing::Instrument as _;

use crate::backend::BackendError;

/// After so long, those who share a call ask by themselves too; and so long each waits for its turn to. Far longer than a store
/// takes that is well.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many calls are under way of those who share calls and ask by themselves.
const ALONE: usize = 64;

/// Where callers with questions of one kind meet.
pub struct Joined<Question, Answer> {
    /// Most questions that one call carries.
    most: usize,
    apart: Apart,
    group: Mutex<Group<Question, Answer>>,
    /// Of those who ask by themselves.
    turns: Arc<Semaphore>,
}

/// When one who shares a call asks by itself as well.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// Where the call fails for what may be another question's fault, or takes too long.
    OnFailureOrDelay,
    /// Where it fails so. What takes long might be carried out in the end, after its repetition.
    OnFailure,
    /// Never: all ask the same.
    Never,
}

/// Those who have come since somebody leads, which is a turn of the runtime ago at most; none where nobody does.
type Group<Question, Answer> = Option<Vec<Waiting<Question, Answer>>>;

struct Waiting<Question, Answer> {
    question: Question,
    answer: oneshot::Sender<Told<Answer>>,
}

/// What one who shares a call is told of it.
enum Told<Answer> {
    Answer(Result<Answer, BackendError>),
    /// It takes too long, and the answer may still come here. The shared call tells it, since a timer of each caller's would be one more
    /// thing to do for every call.
    Late(oneshot::Receiver<Told<Answer>>),
}

impl<Question: Clone, Answer> Joined<Question, Answer> {
    /// Calls carry so many questions at most, and one at least.
    pub fn new(most: usize, apart: Apart) -> Self {
        Self {
            most,
            apart,
            group: Mutex::new(None),
            turns: Arc::new(Semaphore::new(ALONE)),
        }
    }

    /// Asks, together with whoever asks at the same time. `call` gives one answer per question, in their order.
    ///
    /// # Errors
    ///
    /// Those of `call`, for this question as far as can be told.
    pub async fn ask<Call>(
        &self,
        question: Question,
        call: impl Fn(Vec<Question>) -> Call,
    ) -> Result<Answer, BackendError>
    where
        Question: Send + 'static,
        Answer: Send + 'static,
        Call: Future<Output = Result<Vec<Answer>, BackendError>> + Send + 'static,
    {
        let (mut answer, leading) = self.join(&question);
        if let Some(leading) = leading {
            let_others_go_first().await;
            let mut waiting = leading.close();
            waiting.retain(|caller| !caller.answer.is_closed());
            if waiting.len() == 1 {
                return only(call(vec![question]).await);
            }
            while !waiting.is_empty() {
                let rest = waiting.split_off(self.most.min(waiting.len()));
                let (questions, callers): (Vec<_>, _) = waiting
                    .into_iter()
                    .map(|caller| (caller.question, caller.answer))
                    .unzip();
                tokio::spawn(tell(callers, call(questions), self.apart).in_current_span());
                waiting = rest;
            }
        }
        let mut alone = pin!(self.alone(&question, &call));
        let (mut is_late, mut has_asked, mut failed) = (false, false, None);
        let shared = loop {
            let told = tokio::select! {
                biased;
                told = &mut answer => told,
                alone = &mut alone, if is_late && !has_asked => {
                    match alone {
                        Some(Ok(answer)) => return Ok(answer),
                        // The shared call may have an answer still.
                        Some(Err(error)) => failed = Some(error),
                        None => {}
                    }
                    has_asked = true;
                    continue;
                }
            };
            match told {
                Ok(Told::Answer(answer)) => break Some(answer),
                Ok(Told::Late(later)) => {
                    answer = later;
                    is_late = true;
                }
                // The leader went away before it had asked, or the call did not come to an end.
                Err(_) => break None,
            }
        };
        match (shared, failed) {
            (Some(Ok(answer)), _) => Ok(answer),
            (_, Some(error)) => Err(error),
            (Some(Err(error)), None) => {
                let is_final = has_asked || self.apart == Apart::Never || !may_be_of_another(&error);
                if is_final {
                    Err(error)
                } else {
                    alone.await.unwrap_or(Err(error))
                }
            }
            (None, None) => only(call(vec![question.clone()]).await),
        }
    }

    /// Asks by itself, in its turn; none where that does not come in time. The call goes on when its caller goes away, as it
    /// would in a plugin, and its turn ends with it.
    async fn alone<Call>(
        &self,
        question: &Question,
        call: &impl Fn(Vec<Question>) -> Call,
    ) -> Option<Result<Answer, BackendError>>
    where
        Answer: Send + 'static,
        Call: Future<Output = Result<Vec<Answer>, BackendError>> + Send + 'static,
    {
        let turn = Arc::clone(&self.turns).acquire_owned();
        // They are never closed.
        let turn = tokio::time::timeout(PATIENCE, turn).await.ok()?.ok()?;
        let call = call(vec![question.clone()]);
        let asking = async move {
            let _turn = turn;
            only(call.await)
        };
        let asked = tokio::spawn(asking.in_current_span()).await;
        Some(asked.unwrap_or_else(|error| Err(BackendError::Internal(format!("a call was not finished: {error}")))))
    }

    /// Where the answer comes; and the lead, where nobody has it.
    fn join(&self, question: &Question) -> (oneshot::Receiver<Told<Answer>>, Option<Leading<'_, Question, Answer>>) {
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

/// Lets everything else go first that is ready on this thread, unless another thread has nothing to do. The runtime's own
/// `yield_now` keeps the task on its thread until that has looked for news of its connections, which is long where a plugin computes.
async fn let_others_go_first() {
    let mut have_gone = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut have_gone, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Tells these callers what a call gives, and before that, where it takes too long, that it does.
async fn tell<Answer>(
    mut callers: Vec<oneshot::Sender<Told<Answer>>>,
    call: impl Future<Output = Result<Vec<Answer>, BackendError>>,
    apart: Apart,
) {
    let mut call = pin!(call);
    let mut tells_delay = apart == Apart::OnFailureOrDelay;
    let answered = loop {
        tokio::select! {
            biased;
            answered = &mut call => break answered,
            () = have_gone(&mut callers) => return,
            () = tokio::time::sleep(PATIENCE), if tells_delay => {}
        }
        tells_delay = false;
        for caller in &mut callers {
            let (sender, later) = oneshot::channel();
            // One that has gone away does not hear of it.
            let _ = std::mem::replace(caller, sender).send(Told::Late(later));
        }
    };
    let error = match answered {
        Ok(answers) if answers.len() == callers.len() => {
            for (caller, answer) in callers.into_iter().zip(answers) {
                let _ = caller.send(Told::Answer(Ok(answer)));
            }
            return;
        }
        Ok(_) => wrong_number(),
        Err(error) => error,
    };
    for caller in callers {
        let _ = caller.send(Told::Answer(Err(error.clone())));
    }
}

/// Ends when none of these waits any more.
async fn have_gone<Answer>(callers: &mut [oneshot::Sender<Told<Answer>>]) {
    for caller in callers {
        caller.closed().await;
    }
}

/// The one answer to one question.
pub(super) fn only<Answer>(answers: Result<Vec<Answer>, BackendError>) -> Result<Answer, BackendError> {
    answers?.pop().ok_or_else(wrong_number)
}

fn wrong_number() -> BackendError {
    BackendError::Internal("the store gave another number of answers than it was asked for".to_owned())
}

/// True where a call may have failed for what only one of its questions is about. The others then have an answer. What has
/// stopped the plugin is not asked twice, and what was not asked would only wait again.
fn may_be_of_another(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::Unavailable(_)
            | BackendError::Exhausted(_)
            | BackendError::Corrupt(_)
            | BackendError::Internal(_)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    type Doubling = Joined<u32, u32>;

    fn doubling(apart: Apart) -> (Arc<Doubling>, Arc<Doubler>) {
        (Arc::new(Doubling::new(16, apart)), Arc::default())
    }

    /// Doubles numbers. A call takes a turn of the runtime, and is noted before. Of 77 it is without end, and of 66 alone; 55 alone
    /// fails, whatever waits.
    #[derive(Default)]
    struct Doubler {
        calls: Mutex<Vec<Vec<u32>>>,
        /// Calls wait for this.
        is_held: AtomicBool,
    }

    /// What is wrong with a number.
    fn fault(number: u32) -> Option<BackendError> {
        let text = number.to_string();
        match number {
            11 => Some(BackendError::Unavailable(text)),
            12 => Some(BackendError::Exhausted(text)),
            13 => Some(BackendError::Corrupt(text)),
            14 => Some(BackendError::Internal(text)),
            15 => Some(BackendError::Stopped(text)),
            16 => Some(BackendError::NotCalled(text)),
            _ => None,
        }
    }

    impl Doubler {
        async fn double(&self, numbers: Vec<u32>) -> Result<Vec<u32>, BackendError> {
            self.calls.lock().push(numbers.clone());
            tokio::task::yield_now().await;
            if numbers == [55] {
                return Err(BackendError::NotCalled("busy".to_owned()));
            }
            while self.is_held.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            if numbers.contains(&77) || numbers == [66] {
                std::future::pending::<()>().await;
            }
            if let Some(fault) = numbers.iter().copied().find_map(fault) {
                return Err(fault);
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
        tokio::spawn(async move {
            let double = |numbers| {
                let doubler = Arc::clone(&doubler);
                async move { doubler.double(numbers).await }
            };
            joined.ask(number, double).await
        })
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_shares_calls_and_gets_its_own_answer() {
        let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
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
        for number in [11, 12, 13, 14] {
            let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
            let [first, second, third] = [1, number, 2].map(|number| ask(&joined, &doubler, number));
            assert_eq!(first.await.unwrap(), Ok(2));
            assert_eq!(second.await.unwrap(), Err(fault(number).unwrap()));
            assert_eq!(third.await.unwrap(), Ok(4));
            assert_eq!(*doubler.calls.lock().first().unwrap(), [1, number, 2]);
        }
        for (number, apart) in [
            (15, Apart::OnFailureOrDelay),
            (16, Apart::OnFailureOrDelay),
            (11, Apart::Never),
            (14, Apart::Never),
        ] {
            let (joined, doubler) = doubling(apart);
            for asked in [1, number, 2].map(|number| ask(&joined, &doubler, number)) {
                assert_eq!(asked.await.unwrap(), Err(fault(number).unwrap()));
            }
            assert_eq!(doubler.sizes(), [3], "{number}");
        }
    }

    #[tokio::test]
    async fn what_takes_long_is_asked_for_alone_where_it_may_be_and_the_first_answer_is_taken() {
        for (apart, calls) in [
            (Apart::OnFailureOrDelay, vec![3, 1, 1, 1]),
            (Apart::OnFailure, vec![3]),
            (Apart::Never, vec![3]),
        ] {
            let (joined, doubler) = doubling(apart);
            doubler.is_held.store(true, Ordering::Relaxed);
            // Of 66 and 55, only the shared call ever has an answer.
            let asked = [55, 66, 2].map(|number| ask(&joined, &doubler, number));
            tokio::time::sleep(PATIENCE + Duration::from_millis(500)).await;
            assert_eq!(doubler.sizes(), calls);
            doubler.is_held.store(false, Ordering::Relaxed);
            for (asked, answer) in asked.into_iter().zip([110, 132, 4]) {
                assert_eq!(asked.await.unwrap(), Ok(answer));
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_is_slow_for_all_is_asked_a_bounded_number_of_times_more() {
        let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
        doubler.is_held.store(true, Ordering::Relaxed);
        let ask_many = |from| -> Vec<_> {
            (from..from + 160)
                .map(|number| ask(&joined, &doubler, number))
                .collect()
        };
        let gone = ask_many(100);
        tokio::time::sleep(PATIENCE + Duration::from_millis(500)).await;
        let sizes = doubler.sizes();
        assert_eq!(sizes.len(), 160 / 16 + ALONE, "{sizes:?}");
        // Calls go on whose callers have gone away: they take the turns of others.
        gone.iter().for_each(tokio::task::JoinHandle::abort);
        let asked = ask_many(300);
        tokio::time::sleep(PATIENCE + Duration::from_millis(500)).await;
        let sizes = doubler.sizes();
        assert_eq!(sizes.len(), 2 * 160 / 16 + ALONE, "{sizes:?}");
        doubler.is_held.store(false, Ordering::Relaxed);
        for (number, asked) in (300..).zip(asked) {
            assert_eq!(asked.await.unwrap(), Ok(2 * number));
        }
    }

    #[tokio::test]
    async fn who_has_no_turn_hears_that_the_shared_call_has_failed() {
        let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
        let taken: Vec<_> = (0..ALONE)
            .map(|_| Arc::clone(&joined.turns).try_acquire_owned().unwrap())
            .collect();
        for asked in [1, 11, 2].map(|number| ask(&joined, &doubler, number)) {
            assert_eq!(asked.await.unwrap(), Err(fault(11).unwrap()));
        }
        assert_eq!(doubler.sizes(), [3]);
        drop(taken);
    }

    #[tokio::test]
    async fn a_call_ends_when_all_who_share_it_have_gone_away() {
        let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
        doubler.is_held.store(true, Ordering::Relaxed);
        let asked = [1, 2].map(|number| ask(&joined, &doubler, number));
        while doubler.calls.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        for asked in asked {
            asked.abort();
        }
        let has_ended = async {
            while Arc::strong_count(&doubler) > 1 {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), has_ended).await.is_ok());
    }

    #[tokio::test]
    async fn what_takes_for_ever_for_one_delays_the_others_only_for_a_while() {
        let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
        let [first, endless, third] = [1, 77, 2].map(|number| ask(&joined, &doubler, number));
        assert_eq!(first.await.unwrap(), Ok(2));
        assert_eq!(third.await.unwrap(), Ok(4));
        assert!(!endless.is_finished());
        endless.abort();
    }

    // Tasks of this runtime have their turns in the order in which they are spawned.
    #[tokio::test]
    async fn nobody_asks_for_who_has_gone_away() {
        let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
        let leader = ask(&joined, &doubler, 1);
        let gone = tokio::spawn(async move { joined.join(&2).1.is_none() });
        assert_eq!(leader.await.unwrap(), Ok(2));
        assert!(gone.await.unwrap(), "it came too late to be asked for");
        assert_eq!(*doubler.calls.lock(), [[1]]);
    }

    #[tokio::test]
    async fn a_leader_that_goes_away_leaves_the_others_with_answers() {
        for during_the_call in [false, true] {
            let (joined, doubler) = doubling(Apart::OnFailureOrDelay);
            doubler.is_held.store(true, Ordering::Relaxed);
            let leader = ask(&joined, &doubler, 1);
            let others = [2, 3].map(|number| ask(&joined, &doubler, number));
            if during_the_call {
                while doubler.calls.lock().is_empty() {
                    tokio::task::yield_now().await;
                }
                leader.abort();
            } else {
                let abort = leader.abort_handle();
                let joined = Arc::clone(&joined);
                let waiting = tokio::spawn(async move {
                    abort.abort();
                    joined.group.lock().as_ref().map(Vec::len)
                });
                assert_eq!(waiting.await.unwrap(), Some(3));
            }
            assert!(leader.await.unwrap_err().is_cancelled());
            doubler.is_held.store(false, Ordering::Relaxed);
            for (number, other) in (2..).zip(others) {
                assert_eq!(other.await.unwrap(), Ok(2 * number));
            }
            let calls = std::mem::take(&mut *doubler.calls.lock());
            let expected = if during_the_call {
                vec![vec![1, 2, 3]]
            } else {
                vec![vec![2], vec![3]]
            };
            assert_eq!(calls, expected);
        }
    }
}
