//! What the hostile plugin can do wrong, each by a name of its own. The test includes this file, too: its table is a `match`
//! over the kinds, so that one without a row does not compile.

/// Declares the kinds together with the list of them all, so that none can be left out of it.
macro_rules! misbehaviours {
    ($($(#[doc = $doc:literal])+ $kind:ident = $name:literal,)+) => {
        /// One thing that the plugin does wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Misbehaviour {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Misbehaviour {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// Its name, as it stands in the setting `misbehaviour`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }
        }
    };
}

misbehaviours! {
    // Time.
    /// Computes for ever.
    EndlessLoop = "endless-loop",
    /// Asks the host for something small for ever.
    EndlessHostCalls = "endless-host-calls",
    /// Asks the host for something that takes long, again and again.
    CostlyHostCalls = "costly-host-calls",
    /// Waits in a call of the host that never comes back.
    BlocksForEver = "blocks-for-ever",
    /// Gives others their turn, and never answers.
    NeverAnswers = "never-answers",
    /// Waits, and lets others have their turn, for what never comes.
    WaitsForEver = "waits-for-ever",
    // Memory.
    /// Takes memory until there is none.
    MemoryBomb = "memory-bomb",
    /// Takes a little more memory with each call, and gives none back.
    MemoryGrownSlowly = "memory-grown-slowly",
    /// Calls itself without end.
    EndlessRecursion = "endless-recursion",
    /// Takes handles of the host's and drops none.
    LeakedHandles = "leaked-handles",
    /// Takes handles of a secret and drops none.
    LeakedSecrets = "leaked-secrets",
    /// Makes calls of the host's that wait, and takes no answer.
    LeakedCalls = "leaked-calls",
    /// Opens files and closes none.
    LeakedFiles = "leaked-files",
    // Ends.
    /// Traps.
    Trap = "trap",
    /// Traps on every third call.
    TrapOnEveryThirdCall = "trap-on-every-third-call",
    /// Traps while other calls are under way.
    TrapWhileOthersRun = "trap-while-others-run",
    /// Traps when it opens its store.
    TrapInOpen = "trap-in-open",
    /// Ends its program as if it were one.
    Exit = "exit",
    // Answers that are too large or no answers at all.
    /// Returns a record of 1 GiB.
    AnswerOfOneGibibyte = "answer-of-one-gibibyte",
    /// Returns text that is not UTF-8.
    BrokenUtf8 = "broken-utf-8",
    /// Returns record data that is no protobuf.
    BrokenProtobuf = "broken-protobuf",
    /// Fails with a text of 16 MiB, full of control characters and line ends.
    EndlessErrorText = "endless-error-text",
    /// Fails with an error that the function does not have.
    ForeignError = "foreign-error",
    // Answers to other questions.
    /// Answers fewer keys than were asked for.
    TooFewAnswers = "too-few-answers",
    /// Answers more keys than were asked for.
    TooManyAnswers = "too-many-answers",
    /// Answers with another record than the one asked for.
    AnotherRecord = "another-record",
    /// Answers with a tombstone where a live record was asked for.
    DeadRecord = "dead-record",
    /// Answers with a record of version 0.
    VersionZero = "version-zero",
    /// Answers a put with fewer results than batches.
    TooFewResults = "too-few-results",
    /// Answers a put with fewer outcomes than steps.
    TooFewOutcomes = "too-few-outcomes",
    /// Answers an upsert as if it were a delete of nothing.
    WrongOutcome = "wrong-outcome",
    /// Finds a conflict where nothing was expected.
    FalseConflict = "false-conflict",
    /// Answers a put with a version that was used already.
    VersionRepeated = "version-repeated",
    /// Answers a put under server version 0.
    ServerVersionZero = "server-version-zero",
    /// Answers fewer leases than were asked for.
    TooFewLeases = "too-few-leases",
    /// Lists types out of order.
    TypesOutOfOrder = "types-out-of-order",
    // Pages.
    /// Returns a page of more records than were asked for.
    PageOfTooManyRecords = "page-of-too-many-records",
    /// Returns a page of more bytes than were asked for.
    PageOfTooManyBytes = "page-of-too-many-bytes",
    /// Returns the same page again and again, and says each time that there is more.
    CursorStandsStill = "cursor-stands-still",
    /// Returns nothing, and says that there is more.
    EmptyPageWithMore = "empty-page-with-more",
    /// Returns a page out of order.
    PageOutOfOrder = "page-out-of-order",
    /// Returns records of another type than the one asked for.
    AnotherType = "another-type",
    /// Returns changes out of order.
    ChangesOutOfOrder = "changes-out-of-order",
    /// Returns a change that the reader has seen already.
    ChangesRepeated = "changes-repeated",
    /// Returns a change that is newer than the newest.
    ChangeOfTheFuture = "change-of-the-future",
    /// Returns no changes and stays where it is, though there are newer ones.
    ChangesStandStill = "changes-stand-still",
    /// Says that the log was pruned up to a version that the reader has passed.
    PrunedInThePast = "pruned-in-the-past",
    // What it reaches for.
    /// Reads and writes files that it was not granted.
    PathsOutside = "paths-outside",
    /// Connects to addresses and looks up names that it was not granted.
    AddressesOutside = "addresses-outside",
    /// Goes by a granted name whose answers change from one look-up to the next.
    NamesThatChange = "names-that-change",
    /// Sends HTTP requests to origins that it was not granted.
    OriginsOutside = "origins-outside",
    /// Asks for settings and secrets that it was not granted.
    NamesOutside = "names-outside",
    // What it does to its database.
    /// Asks for a database that it was not granted.
    DatabaseOutside = "database-outside",
    /// Begins transactions and ends none.
    LeakedTransactions = "leaked-transactions",
    /// Listens again and again, and drops no listener.
    LeakedListeners = "leaked-listeners",
    /// Listens to a channel whose name has megabytes, which each call that waits would keep.
    LongChannel = "long-channel",
    /// Traps in a transaction that has written and holds a lock.
    TrapInTransaction = "trap-in-transaction",
    /// Runs a statement that never ends.
    EndlessStatement = "endless-statement",
    /// Runs one that never ends, and that goes on when it is cancelled.
    StubbornStatement = "stubborn-statement",
    /// Runs a statement whose rows never end.
    EndlessRows = "endless-rows",
    /// Runs a statement with rows of a megabyte that never end.
    EndlessBytes = "endless-bytes",
    /// Runs a statement with one row of some hundred megabytes.
    EnormousRow = "enormous-row",
    // What it says.
    /// Writes far more lines to the log than anybody reads.
    LogFlood = "log-flood",
    /// Writes far more to its standard error, without a line's end.
    StandardErrorFlood = "standard-error-flood",
}

impl Misbehaviour {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}
