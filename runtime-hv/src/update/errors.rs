//! Why an update was not done, and the reason code, exit status and advice that go with it.

use super::link::LinkError;
use super::sites::SiteError;
use super::transaction::TransactionError;
use super::transfer::Overflow;
use crate::engine::{CallError, EngineError};
use crate::guest::GuestError;
use crate::guest::arena::ArenaError;
use crate::guest::frames::UnwindError;
use crate::guest::slab::SlabError;
use crate::guest::support::{Operation, SupportError};
use crate::journal::{Journal, JournalError};
use crate::protocol::Problem;
use lpk_format::Bundle;
use std::time::Duration;

/// Why an update was not done.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The bundle is not one.
    #[error("not a usable bundle: {0}")]
    Bundle(String),
    /// A hook forbids the update, or taking it back.
    #[error("the bundle's own hook {hook} forbids it: it returned {value}")]
    Vetoed {
        /// Which.
        hook: &'static str,
        /// What it returned.
        value: i32,
    },
    /// A hook did not do its work.
    #[error("the bundle's hook {hook} failed: {source}")]
    HookFailed {
        /// Which.
        hook: String,
        /// Why.
        source: CallError,
    },
    /// There is no processor to run a hook on at this moment.
    #[error("no processor can run the bundle's hook {hook} now: {why}")]
    NoProcessor {
        /// Which.
        hook: String,
        /// Why.
        why: String,
    },
    /// A datum to be changed in place does not hold what it should.
    #[error(
        "datum `{name}` holds another value than expected, at physical address {pa:#x}: expected {expected}, found {found}"
    )]
    DataChanged {
        /// The datum.
        name: String,
        /// Where.
        pa: u64,
        /// Bytes expected.
        expected: String,
        /// Bytes found.
        found: String,
    },
    /// A datum's contents have no place in its other version.
    #[error("datum `{name}` cannot be carried: {source}")]
    DoesNotFit {
        /// The datum.
        name: String,
        /// What does not fit.
        source: Overflow,
    },
    /// Another bundle has changed a datum.
    #[error("datum `{datum}` is changed by `{by}` (id {id}) already, and this bundle changes it or uses its old copy")]
    DatumTaken {
        /// The datum.
        datum: String,
        /// The other bundle.
        by: String,
        /// Its id.
        id: String,
    },
    /// Objects on the heap cannot be given what is new in them.
    #[error("objects of `{type_name}`, whose slab cache is behind `{cache}`: {reason}")]
    Objects {
        /// The type.
        type_name: String,
        /// The variable that points to their cache.
        cache: String,
        /// What is in the way.
        reason: String,
    },
    /// Another bundle has added something to the same place in the same objects.
    #[error("`{by}` (id {id}) has added something else in the same place to the objects of `{type_name}`")]
    ObjectsTaken {
        /// The type.
        type_name: String,
        /// The other bundle.
        by: String,
        /// Its id.
        id: String,
    },
    /// The bundle needs what this version cannot do.
    #[error("{0}")]
    Unsupported(String),
    /// The guest is not the right one or could not be understood.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// An old function is not as expected.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// New code cannot be made for this guest.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// No memory for new code.
    #[error(transparent)]
    Arena(#[from] ArenaError),
    /// The guest cannot be asked to prepare anything.
    #[error(transparent)]
    Support(#[from] SupportError),
    /// The bundle has no support object.
    #[error("the bundle has no support object, which prepares the guest from inside")]
    NoSupport,
    /// The bundle has tables, and was to go to the arena.
    #[error("the new code has {tables}, which only the guest itself can make known")]
    NeedsPreparation {
        /// Which.
        tables: String,
    },
    /// The guest has to run to prepare anything.
    #[error("the guest is stopped by its owner, and new code is prepared by the guest itself")]
    OwnerPaused,
    /// The guest was asked and does not answer.
    #[error("the guest was asked to {} and does not answer within {} ms; {}", verb(*.operation), .patience.as_millis(),
        if *.begun { "it is at work still, and its answer is waited for" } else { "the request was taken back" })]
    Silent {
        /// What it was asked.
        operation: Operation,
        /// How long was waited.
        patience: Duration,
        /// It has begun.
        begun: bool,
    },
    /// The guest was asked and could not do it.
    #[error("the guest was asked to {} and answered with error {error}", verb(*.operation))]
    Declined {
        /// What it was asked.
        operation: Operation,
        /// Its answer, as the kernel numbers errors.
        error: i64,
    },
    /// A place that the kernel patches at any time lies under the jump.
    #[error(
        "the first {length} bytes of `{function}` contain {place}; the jump would collide with the guest's own patching"
    )]
    EntryInUse {
        /// Function.
        function: String,
        /// Bytes of the jump.
        length: usize,
        /// What is there.
        place: &'static str,
    },
    /// The guest does not have a module now.
    #[error("the guest does not have the module `{name}`, or is loading or removing it right now")]
    ModuleAbsent {
        /// Its name.
        name: String,
    },
    /// The guest has another build of a module.
    #[error("the module `{name}` has build id {found}; the bundle was made for {expected}")]
    ModuleBuild {
        /// Its name.
        name: String,
        /// The bundle's.
        expected: String,
        /// The guest's.
        found: String,
    },
    /// The bundle is applied.
    #[error("`{name}` ({id}) is already applied")]
    AlreadyApplied {
        /// Name.
        name: String,
        /// Id.
        id: String,
    },
    /// Another bundle has redirected one of its functions.
    #[error("`{function}` is already redirected by `{by}` ({id})")]
    Redirected {
        /// Function.
        function: String,
        /// Name of the other bundle.
        by: String,
        /// Id of the other bundle.
        id: String,
    },
    /// The service was for another boot.
    #[error("the guest was restarted: bundles applied to its previous boot are gone")]
    OtherBoot,
    /// No such bundle.
    #[error("no bundle named `{name}`, and none whose id begins so")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Several bundles.
    #[error("`{name}` could be any of {ids}")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Candidates.
        ids: String,
    },
    /// The bundle is not in effect.
    #[error("`{name}` is not applied; it is {state}")]
    NotApplied {
        /// Name.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// Somebody changed the entry since.
    #[error(
        "the entry of a function redirected by `{name}`, at physical address {pa:#x}, was changed by someone else since: expected {expected}, found {found}"
    )]
    ChangedSince {
        /// Name.
        name: String,
        /// Where.
        pa: u64,
        /// Bytes expected.
        expected: String,
        /// Bytes found.
        found: String,
    },
    /// The guest has put a probe on the jump.
    #[error("the entry of a function redirected by `{name}` has a kprobe of the guest at {at:#x}, on or off")]
    ProbedSince {
        /// Name.
        name: String,
        /// Where.
        at: u64,
    },
    /// The right moment did not come.
    #[error("no moment to switch in {attempts} attempts: {who}")]
    Busy {
        /// Who was in the way.
        who: String,
        /// Attempts made.
        attempts: usize,
    },
    /// Stacks cannot be walked.
    #[error(transparent)]
    Unwind(#[from] UnwindError),
    /// The hypervisor failed; the guest is as it was.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Writing failed.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// The journal could not be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<SlabError> for UpdateError {
    fn from(error: SlabError) -> UpdateError {
        match error {
            SlabError::Guest(error) => UpdateError::Guest(error),
            SlabError::Unsupported(reason) => UpdateError::Unsupported(reason),
        }
    }
}

impl UpdateError {
    /// Whether the guest may be half changed.
    pub(crate) fn is_stuck(&self) -> bool {
        matches!(self, UpdateError::Transaction(TransactionError::Stuck { .. }))
    }

    /// Whether it comes from data or hooks while the guest stood, and all that was written has been taken back.
    pub(crate) fn is_taken_back(&self) -> bool {
        match self {
            UpdateError::HookFailed { source, .. } => !matches!(source, CallError::Engine(_)),
            UpdateError::DataChanged { .. }
            | UpdateError::Objects { .. }
            | UpdateError::DoesNotFit { .. }
            | UpdateError::Vetoed { .. }
            | UpdateError::NoProcessor { .. } => true,
            _ => false,
        }
    }

    /// For the control socket.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let refused = |reason: &str| Problem::refused(reason, self);
        let failed = |reason: &str| Problem::failed(reason, self);
        match self {
            UpdateError::Bundle(_) => refused("corrupted-bundle").help("build it again with lucos-build"),
            UpdateError::Vetoed { .. } => {
                refused("hook-veto").help("the number is the hook's own; its author knows what it means")
            }
            UpdateError::HookFailed { source: CallError::Unsupported(_), .. } => {
                refused("no-calls").help("use the engine kvm, or QEMU's software emulation")
            }
            UpdateError::HookFailed { source: CallError::Engine(_), .. } => failed("engine-failed"),
            UpdateError::HookFailed { .. } => refused("hook-failed")
                .help("what the runtime had written was taken back; what the hook itself has written was not"),
            UpdateError::NoProcessor { .. } => refused("busy").help("try again later"),
            UpdateError::DataChanged { .. } => refused("data-changed").help(
                "nothing was written: the guest has given it a value of its own; set the expected one, or build the bundle with `overwrite = true` for it",
            ),
            UpdateError::DoesNotFit { .. } => refused("data-transfer").help("nothing was written"),
            UpdateError::Objects { .. } => refused("objects"),
            UpdateError::DatumTaken { id, .. } | UpdateError::ObjectsTaken { id, .. } => {
                refused("data-taken").help(format!("undo {} first", id.get(..12).unwrap_or(id)))
            }
            UpdateError::Unsupported(_) => refused("unsupported"),
            UpdateError::Unwind(UnwindError::Guest(error))
            | UpdateError::Guest(error)
            | UpdateError::Arena(ArenaError::Guest(error))
            | UpdateError::Support(SupportError::Guest(error)) => guest(error, self),
            UpdateError::Support(_) | UpdateError::NoSupport => {
                refused("cannot-prepare").help("build the bundle again, or apply it with --in-arena if it has no tables")
            }
            UpdateError::NeedsPreparation { .. } => refused("needs-preparation").help("apply it without --in-arena"),
            UpdateError::ModuleAbsent { .. } => refused("module-not-loaded"),
            UpdateError::ModuleBuild { .. } => {
                refused("wrong-module").help("build a bundle for the module that this guest loads")
            }
            UpdateError::OwnerPaused => refused("guest-state").help("let the guest run, then try again"),
            UpdateError::Silent { .. } => refused("guest-does-not-answer").help(
                "try again when the guest is less busy; if it is broken, a bundle without tables can be applied with --in-arena",
            ),
            UpdateError::Declined { error: NO_MEMORY, .. } => refused("no-arena").help("the guest has no memory to give"),
            UpdateError::Declined { .. } => refused("guest-declines"),
            UpdateError::Site(SiteError::Traced { .. }) => {
                refused("traced").help("stop tracing or probing this function in the guest, then apply again")
            }
            UpdateError::Site(SiteError::Breakpoint { .. } | SiteError::Registered { .. }) => {
                refused("probed").help("remove the kprobe in the guest, then apply again")
            }
            UpdateError::Site(SiteError::Differs { .. }) => refused("code-differs")
                .help("something in the guest changed this function; the bundle cannot be proved to fit"),
            UpdateError::Link(_) => refused("cannot-link"),
            UpdateError::Arena(ArenaError::Full { .. }) => {
                refused("no-arena").help("undo a bundle, or use a smaller one")
            }
            UpdateError::Arena(ArenaError::Taken { .. }) => refused("unknown-service")
                .help("attach with the --api path that was used then; without its journal, restart the guest first"),
            UpdateError::Arena(_) => refused("no-arena"),
            UpdateError::EntryInUse { .. } => refused("entry-in-use"),
            UpdateError::AlreadyApplied { .. } => refused("already-applied"),
            UpdateError::Redirected { id, .. } => {
                refused("already-redirected").help(format!("undo {} first", id.get(..12).unwrap_or(id)))
            }
            UpdateError::OtherBoot => refused("other-boot").help("apply the bundle again"),
            UpdateError::Unknown { .. } => refused("unknown-bundle").help("`lucos-hv list` shows what there is"),
            UpdateError::Ambiguous { .. } => refused("ambiguous-name").help("give more digits of the id"),
            UpdateError::NotApplied { .. } => refused("not-applied"),
            UpdateError::ChangedSince { .. } => {
                refused("changed-since").help("stop tracing or probing this function in the guest, then undo again")
            }
            UpdateError::ProbedSince { .. } => refused("probed").help("remove the kprobe in the guest, then undo again"),
            UpdateError::Unwind(_) => refused("no-unwind-tables"),
            UpdateError::Busy { .. } => refused("busy").help("try again later"),
            UpdateError::Transaction(TransactionError::Stuck { .. }) => failed("guest-half-changed")
                .help("restart the service with `lucos-hv attach`: it finishes taking back from its journal"),
            UpdateError::Engine(EngineError::State(_)) => {
                refused("guest-state").help("let the guest run, or reset it, then try again")
            }
            UpdateError::Engine(_) | UpdateError::Transaction(_) => failed("engine-failed"),
            UpdateError::Journal(_) => failed("journal-failed"),
        }
    }
}

/// `-ENOMEM`.
const NO_MEMORY: i64 = -12;

fn verb(operation: Operation) -> &'static str {
    match operation {
        Operation::Allocate => "give module memory",
        Operation::Register => "register the new code as a module",
        Operation::Release => "take the module back",
    }
}

fn guest(error: &GuestError, shown: &UpdateError) -> Problem {
    match error {
        GuestError::NotBooted(_) => Problem::refused("not-booted", shown).help("wait until the guest has booted"),
        GuestError::Slide { .. } => Problem::refused("wrong-kernel", shown)
            .help("wait until the guest has booted; if it has, build a bundle for the kernel that runs in it"),
        GuestError::BuildId { .. } => {
            Problem::refused("wrong-kernel", shown).help("build a bundle for the kernel that runs in this guest")
        }
        GuestError::Missing { .. } => Problem::refused("profile-incomplete", shown),
        GuestError::NotMapped { .. } | GuestError::Damaged { .. } => Problem::refused("guest-damaged", shown),
        GuestError::Engine(_) => Problem::failed("engine-failed", shown),
    }
}

/// Reads and checks a bundle; its id as text.
pub(crate) fn read_bundle(bytes: &[u8]) -> Result<(Bundle, String), UpdateError> {
    let read = lpk_format::read(bytes).map_err(|error| UpdateError::Bundle(error.to_string()))?;
    Ok((read.bundle, read.id.to_string()))
}

/// The error of a failed step, after what had been done was taken back in the same stop: the journal is told.
pub(crate) fn taken_back(journal: &Journal, error: UpdateError, undone: Result<(), EngineError>) -> UpdateError {
    let error = with_undo(error, undone);
    if !error.is_stuck() {
        // Should this fail, forgetting the action fails as well, and that is said.
        let _ = journal.taken_back();
    }
    error
}

/// The same of something that the journal need not know.
pub(crate) fn with_undo(error: UpdateError, undone: Result<(), EngineError>) -> UpdateError {
    match undone {
        Err(then) if !error.is_stuck() => TransactionError::Stuck { first: error.to_string(), then }.into(),
        _ => error,
    }
}

/// The same for writes that take themselves back.
pub(crate) fn not_written(journal: &Journal, error: TransactionError) -> UpdateError {
    taken_back(journal, error.into(), Ok(()))
}
