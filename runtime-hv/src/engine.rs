//! What the update service asks of a hypervisor: one trait per power.
//!
//! Comes in: nothing. Decided: which powers exist. Goes out: traits that an engine implements as far as it can, so that a
//! missing power is a compile-time fact. The service is written against them and knows neither KVM nor QEMU.

pub mod kvm;
pub mod mock;
pub mod qemu;

use std::time::Duration;

/// A virtual address of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Va(pub u64);

/// A physical address of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pa(pub u64);

/// Index of a virtual processor, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vcpu(pub usize);

/// The registers that the service looks at (Intel SDM vol. 1, 3.4; vol. 3, 2.4–2.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Frame pointer.
    pub rbp: u64,
    /// The other general registers; zeros where a processor runs 32-bit code.
    pub rax: u64,
    /// See `rax`.
    pub rbx: u64,
    /// See `rax`.
    pub rcx: u64,
    /// See `rax`.
    pub rdx: u64,
    /// See `rax`.
    pub rsi: u64,
    /// See `rax`.
    pub rdi: u64,
    /// See `rax`.
    pub r8: u64,
    /// See `rax`.
    pub r9: u64,
    /// See `rax`.
    pub r10: u64,
    /// See `rax`.
    pub r11: u64,
    /// See `rax`.
    pub r12: u64,
    /// See `rax`.
    pub r13: u64,
    /// See `rax`.
    pub r14: u64,
    /// See `rax`.
    pub r15: u64,
    /// Flags.
    pub rflags: u64,
    /// Current privilege level, 0 or 3.
    pub cpl: u8,
    /// Control register 3: the page table in use.
    pub cr3: u64,
    /// Control register 4: bit 12 says 5-level paging.
    pub cr4: u64,
    /// Base of the interrupt descriptor table.
    pub idt_base: u64,
    /// Base of GS: the per-CPU area while in the kernel. In user mode, and in the few instructions of kernel entry before
    /// `swapgs`, it is the program's own; `__per_cpu_offset` gives a processor's area at any moment.
    pub gs_base: u64,
}

/// Why an engine could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A guest-physical range that is not memory, or could not be read or written.
    #[error("guest-physical memory {pa:#x}, {len} bytes: {reason}")]
    Memory {
        /// First address.
        pa: u64,
        /// Length in bytes.
        len: usize,
        /// What the hypervisor said.
        reason: String,
    },
    /// The hypervisor does not answer or the connection is gone.
    #[error("{peer}: {reason}")]
    Connection {
        /// Which connection.
        peer: &'static str,
        /// What happened.
        reason: String,
    },
    /// The answer is not of the expected form.
    #[error("{peer} answered `{answer}`; expected {expected}")]
    Protocol {
        /// Which connection.
        peer: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What came.
        answer: String,
    },
    /// The guest neither runs nor was it stopped by its owner: it has ended, sleeps, or is moving to another host.
    #[error("the guest is in the state `{0}`; expected it running, or stopped by its owner")]
    State(&'static str),
    /// The operation needs a stopped guest.
    #[error("the guest is running; {0} needs it stopped")]
    Running(&'static str),
}

/// Reads guest-physical memory, of a running or a stopped guest.
pub trait ReadMemory {
    /// Fills `into` from `from`.
    ///
    /// # Errors
    /// [`EngineError::Memory`] when any byte of the range is not memory.
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError>;
}

/// Writes guest-physical memory of a stopped guest; code written this way is executed from then on.
pub trait WriteMemory {
    /// Writes `bytes` at `to`.
    ///
    /// # Consistency on error
    /// A prefix of `bytes` may have been written; the caller knows the old bytes and writes them back.
    ///
    /// # Errors
    /// [`EngineError::Running`] on a running guest, [`EngineError::Memory`] when the range is not memory.
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError>;

    /// Writes to many places, in order.
    ///
    /// # Consistency on error
    /// Any of them may have been written to, one in part; the caller knows the old bytes of all.
    ///
    /// # Errors
    /// As [`WriteMemory::write`].
    fn write_each(&mut self, places: &[(Pa, &[u8])]) -> Result<(), EngineError> {
        places.iter().try_for_each(|&(to, bytes)| self.write(to, bytes))
    }
}

/// Stops and continues all processors.
pub trait Pause {
    /// Stops every processor; returns when all have stopped. Stopping a stopped guest is no error.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when the hypervisor does not answer in time.
    fn pause(&mut self) -> Result<(), EngineError>;

    /// Lets every processor continue.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when the hypervisor does not answer in time.
    fn resume(&mut self) -> Result<(), EngineError>;

    /// Whether the guest's owner stopped it before we came, so that it must be left stopped.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when the hypervisor does not answer in time.
    fn is_paused(&mut self) -> Result<bool, EngineError>;

    /// Whether the guest stands because of us, and has stood since [`Pause::pause`]. After an error of [`Pause::resume`] it
    /// may run or not: this tells.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when the hypervisor does not answer in time.
    fn is_held(&mut self) -> Result<bool, EngineError>;

    /// How long the processors stood in the last pause that has ended, as far as the engine can tell: without what it does
    /// before it stops them and after they run again.
    fn last_pause(&self) -> Duration;

    /// How many resets of the guest the engine has heard of since it was attached, up to the hypervisor's last answer.
    /// After a reset nothing of what was done before is in effect, whatever the memory still holds. An engine that may miss
    /// one says so by missing it: callers look into the guest as well.
    fn resets(&self) -> u64;
}

/// Looks at the processors of a guest.
pub trait Vcpus {
    /// Registers of every processor, in order of [`Vcpu`]. On a running guest they are a snapshot of no meaning but for
    /// those that a booted kernel never changes (`idt_base`).
    ///
    /// # Errors
    /// [`EngineError::Protocol`] or [`EngineError::Connection`].
    fn registers(&mut self) -> Result<Vec<Registers>, EngineError>;
}

/// Raises interrupts in a guest.
pub trait Interrupt {
    /// Raises `vector` at the processor with a local APIC id, as a message of a device would (Intel SDM vol. 3, 11.11). The
    /// guest is stopped; the processor takes the interrupt when it runs again and lets interrupts in.
    ///
    /// # Errors
    /// [`EngineError::Running`] on a running guest, [`EngineError::Connection`] or [`EngineError::Protocol`] when the
    /// hypervisor does not do it.
    fn interrupt(&mut self, apic_id: u8, vector: u8) -> Result<(), EngineError>;
}

/// Where the engine can place executable memory for a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArenaSource {
    /// Memory of the engine's own, outside the guest's memory map: first address and length in bytes.
    Slot(Pa, u64),
    /// None of its own: the service takes low memory that the guest reserved and never hands out.
    ReservedLowMemory,
}

/// Offers memory for new code.
pub trait Arena {
    /// Where it is.
    fn arena(&self) -> ArenaSource;
}

/// The guest at a moment at which all its processors stand: what an [`Attend`] works with.
pub trait Stopped: ReadMemory + WriteMemory {
    /// Registers of a processor.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when the hypervisor does not tell, or has no such processor.
    fn registers(&self, vcpu: Vcpu) -> Result<Registers, EngineError>;

    /// Lets a processor go on at another instruction.
    ///
    /// # Errors
    /// As [`Stopped::registers`].
    fn redirect(&mut self, vcpu: Vcpu, rip: u64) -> Result<(), EngineError>;

    /// Runs a function on the processor that is attended to, as [`Calls::call`] does; what it writes to trapped pages is not told.
    ///
    /// # Errors
    /// [`CallError`].
    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError>;
}

/// A stretch of memory whose writes are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trapped {
    /// First address.
    pub at: Pa,
    /// Length in bytes; it ends in the page in which it begins.
    pub length: usize,
    /// Virtual addresses at which the guest's kernel has it. An engine that traps physical memory needs none; one that
    /// traps virtual addresses tells a write by any other address late.
    pub aliases: Vec<Va>,
}

impl Trapped {
    /// The first `length` bytes of a page, known by its physical address alone.
    #[must_use]
    pub fn page(at: Pa, length: usize) -> Trapped {
        Trapped { at, length, aliases: Vec::new() }
    }
}

/// Memory that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where `before` and `after` begin: a [`Trapped`] stretch, or the whole page around it.
    pub at: Pa,
    /// What was there when it was told last.
    pub before: Vec<u8>,
    /// What is there now.
    pub after: Vec<u8>,
    /// It was not seen at the moment of the write: the guest may have done something since.
    pub late: bool,
}

/// Attends to what the guest does while it runs. It is called with all processors stopped, and they wait for it.
pub trait Attend: Send {
    /// A processor has written to trapped memory. Usually this is one write; where it is not, nothing is known of the order.
    /// Contents that did not change are no write.
    fn written(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, writes: &[Written]);

    /// Code of the service in the guest reports ([`Calls::report_code`], which changes no register); the processor stands in it,
    /// and stays there unless it is redirected.
    fn reported(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, value: u32);
}

/// Tells of writes and reports.
pub trait Watch {
    /// Says who attends from now on, and at which addresses there is [`Calls::report_code`] that will be run; the guest is
    /// stopped.
    ///
    /// # Errors
    /// [`EngineError::Running`] on a running guest.
    fn attend(&mut self, attendant: Option<Box<dyn Attend>>, reports: &[Va]) -> Result<(), EngineError>;

    /// Traps writes to memory, whoever writes and whatever the instruction; the guest is stopped. Trapping what is trapped is
    /// no error.
    ///
    /// # Errors
    /// [`EngineError::Running`] on a running guest, [`EngineError::Memory`] when it is not memory.
    fn trap(&mut self, what: &Trapped) -> Result<(), EngineError>;

    /// Lets writes to it through again; the guest is stopped. What else is trapped stays trapped.
    ///
    /// # Errors
    /// As [`Watch::trap`].
    fn untrap(&mut self, what: &Trapped) -> Result<(), EngineError>;

    /// Why nobody has attended for a while since the last question, if so.
    fn trouble(&mut self) -> Option<String> {
        None
    }
}

/// An interrupt of one processor: what [`Interrupt::interrupt`] raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake {
    /// Local APIC id of the processor.
    pub apic_id: u8,
    /// The vector.
    pub vector: u8,
}

/// A function of the guest to run to its return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The function.
    pub function: Va,
    /// Its arguments, in RDI, RSI, RDX, RCX, R8, R9 (System V psABI 3.2.3).
    pub arguments: [u64; 6],
    /// End of a stack of its own, a multiple of 16; the stack grows down.
    pub stack: Va,
    /// Where the function returns: [`Calls::report_code`] is there.
    pub back: Va,
    /// Base of GS: the processor's per-CPU area.
    pub gs_base: u64,
    /// The kernel's page table.
    pub cr3: u64,
    /// How long it may take.
    pub limit: Duration,
    /// An interrupt that the guest's kernel takes at any time without harm (Linux: that of a reschedule). An engine that can
    /// wake a halted processor by no other means raises it; the guest takes it when it runs again. Without one the processor must
    /// not be halted, and is called also while it serves an interrupt that would keep this one out.
    pub wake: Option<Wake>,
}

/// Why a call gave no value. The processor is as it was before; what the function did to memory stays.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It did not return in time.
    #[error("the function at {function:#x} did not return within {} ms; it was at {at:#x}", limit.as_millis())]
    Late {
        /// The function.
        function: u64,
        /// Its limit.
        limit: Duration,
        /// Where it was.
        at: u64,
    },
    /// It did something else than return: it reported from elsewhere, or wrote to a trapped page.
    #[error("the function at {function:#x} did not return: {reason}")]
    Strayed {
        /// The function.
        function: u64,
        /// What it did.
        reason: String,
    },
    /// The processor is in a state of a moment that the engine could not put back; nothing was done. Another processor may do,
    /// or this one after the guest has run on.
    #[error("processor {vcpu} {reason}; let the guest run on and try again, or try another processor")]
    NotNow {
        /// Index of the processor.
        vcpu: usize,
        /// Its state.
        reason: &'static str,
    },
    /// The engine cannot do this on this guest at all; nothing was done.
    #[error("functions of this guest cannot be called: {0}")]
    Unsupported(&'static str),
    /// The hypervisor failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Runs functions of the guest.
pub trait Calls {
    /// What the service has to place at [`Call::back`], mapped for execution as long as calls are made: code that ends a call
    /// and never runs on.
    fn report_code(&self) -> &'static [u8];

    /// Runs a function on a processor of the stopped guest, whatever that processor was doing, with interrupts off and the other
    /// processors standing: for functions that take no lock, do not sleep and leave vector and x87 registers alone. Gives RAX.
    /// While it runs so do the guest's clock and its devices; what a device writes then is not held back.
    ///
    /// # Consistency on error
    /// The processor has its registers back, vector registers included as far as the hypervisor shows them. If that fails too,
    /// the guest does not go on: it is ended, or stands until its registers are put back ([`Pause::resume`] tries that first).
    ///
    /// # Errors
    /// [`CallError`].
    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError>;
}

/// An engine with all powers that the service needs.
pub trait Engine: ReadMemory + WriteMemory + Pause + Vcpus + Interrupt + Arena + Calls + Send {
    /// Name for people and JSON (`qemu`).
    fn name(&self) -> &'static str;

    /// Tells of writes and reports, if it can.
    fn watch(&mut self) -> Option<&mut dyn Watch> {
        None
    }
}
