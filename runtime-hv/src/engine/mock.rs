//! A recording guest in memory, for tests of everything above the engines.
//!
//! Comes in: memory, registers, and which call shall fail. Decided: nothing that a real engine would not decide as well (a
//! write to a running guest is refused, addresses without memory are refused). Goes out: the calls made, and memory to
//! compare.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{
    Arena, ArenaSource, Attend, Call as GuestCall, CallError, Calls, Engine, EngineError, Interrupt, Pa, Pause,
    ReadMemory, Registers, Trapped, Va, Vcpu, Vcpus, Watch, WriteMemory,
};

const PAGE: u64 = 4096;

/// One call of an engine's trait, in the order of arrival. Calls that failed are recorded too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`ReadMemory::read`].
    Read {
        /// First address.
        from: Pa,
        /// Bytes asked for.
        len: usize,
    },
    /// [`WriteMemory::write`].
    Write {
        /// First address.
        to: Pa,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// [`Pause::pause`].
    Pause,
    /// [`Pause::resume`].
    Resume,
    /// [`Pause::is_paused`].
    IsPaused,
    /// [`Vcpus::registers`].
    Registers,
    /// [`Interrupt::interrupt`].
    Interrupt {
        /// Which processor.
        apic_id: u8,
        /// Which interrupt.
        vector: u8,
    },
    /// [`Watch`].
    Watch,
    /// [`Calls::call`].
    Call {
        /// The function.
        function: u64,
    },
}

/// What the guest's own code does when it runs with an interrupt raised. It may use the engine's memory as it likes.
pub type Handler = fn(&mut MockEngine, apic_id: u8, vector: u8);

/// What a function of the guest does that is called.
pub type Function = fn(&mut MockEngine, call: &GuestCall) -> Result<u64, CallError>;

/// Which calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failing {
    Never,
    /// Only this one.
    At(usize),
    /// This one and all later ones, as when the hypervisor is gone.
    From(usize),
}

/// The guest.
#[derive(Debug)]
pub struct MockEngine {
    pages: BTreeMap<u64, Vec<u8>>,
    registers: VecDeque<Vec<Registers>>,
    running: bool,
    /// `Some` while we hold the guest: whether its owner had stopped it before.
    held: Option<bool>,
    arena: ArenaSource,
    calls: RefCell<Vec<Call>>,
    count: Cell<usize>,
    failing: Failing,
    resets: u64,
    /// Raised while the guest stands.
    raised: Vec<(u8, u8)>,
    handler: Option<Handler>,
    function: Option<Function>,
    /// Reports and writes could be told; nobody reports.
    watches: bool,
}

impl Default for MockEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl MockEngine {
    /// A running guest with one processor, whose registers are 0, and no memory.
    pub fn new() -> Self {
        Self {
            pages: BTreeMap::new(),
            registers: VecDeque::from([vec![Registers::default()]]),
            running: true,
            held: None,
            arena: ArenaSource::ReservedLowMemory,
            calls: RefCell::new(Vec::new()),
            count: Cell::new(0),
            failing: Failing::Never,
            resets: 0,
            raised: Vec::new(),
            handler: None,
            function: None,
            watches: false,
        }
    }

    /// From now on it says that it tells of writes and reports. The guest does neither.
    pub fn set_watching(&mut self) {
        self.watches = true;
    }

    /// From now on functions of the guest do this.
    pub fn set_function(&mut self, function: Function) {
        self.function = Some(function);
    }

    /// What the guest does with interrupts; without it they are lost.
    #[must_use]
    pub fn with_handler(mut self, handler: Handler) -> Self {
        self.handler = Some(handler);
        self
    }

    /// From now on the guest does this with interrupts.
    pub fn set_handler(&mut self, handler: Option<Handler>) {
        self.handler = handler;
    }

    /// Memory as the guest's own code sees it: it counts as no call. What is not memory reads as zeros.
    pub fn peek(&self, from: Pa, into: &mut [u8]) {
        for (address, byte) in (from.0..).zip(into) {
            let cell = self.pages.get(&(address / PAGE)).and_then(|page| page.get((address % PAGE) as usize));
            *byte = cell.copied().unwrap_or_default();
        }
    }

    /// Writes memory as the guest's own code does: it counts as no call. What is not memory stays so.
    pub fn poke(&mut self, to: Pa, bytes: &[u8]) {
        self.store(to, bytes);
    }

    /// Lets the guest's own code run, if the guest does.
    fn react(&mut self) {
        if self.running
            && let Some(handler) = self.handler
        {
            for (apic_id, vector) in std::mem::take(&mut self.raised) {
                handler(self, apic_id, vector);
            }
        }
    }

    /// Adds the pages around `bytes` to the guest's memory and fills them in; what is not memory yet starts as zeros. It
    /// counts as no call.
    ///
    /// # Panics
    /// When `bytes` passes the end of the address space.
    #[must_use]
    pub fn with_memory(mut self, at: Pa, bytes: &[u8]) -> Self {
        let end = at.0.checked_add(bytes.len() as u64).expect("the test puts memory inside the address space");
        for page in at.0 / PAGE..end.div_ceil(PAGE) {
            self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize]);
        }
        self.store(at, bytes);
        self
    }

    /// Says where new code can go; [`ArenaSource::ReservedLowMemory`] unless told.
    #[must_use]
    pub fn with_arena(mut self, arena: ArenaSource) -> Self {
        self.arena = arena;
        self
    }

    /// The owner stops or continues the guest, as long as we do not hold it.
    pub fn set_owner_paused(&mut self, paused: bool) {
        match &mut self.held {
            Some(owner_paused) => *owner_paused = paused,
            None => self.running = !paused,
        }
    }

    /// The guest is reset: memory and registers are what they are.
    pub fn reset(&mut self) {
        self.resets += 1;
        self.raised.clear();
    }

    /// Registers of all processors, from now on.
    pub fn set_registers(&mut self, registers: Vec<Registers>) {
        self.registers = VecDeque::from([registers]);
    }

    /// Registers that are seen after the ones before have been read once; the last ones stay.
    pub fn then_registers(&mut self, registers: Vec<Registers>) {
        self.registers.push_back(registers);
    }

    /// Makes the `n`-th call from now fail, counted from 1. A write that fails leaves the first half of its bytes behind.
    pub fn fail_at(&mut self, n: usize) {
        self.failing = Failing::At(self.count.get() + n);
    }

    /// Makes the `n`-th call from now and all later ones fail, counted from 1.
    pub fn fail_from(&mut self, n: usize) {
        self.failing = Failing::From(self.count.get() + n);
    }

    /// No call fails any more.
    pub fn fail_never(&mut self) {
        self.failing = Failing::Never;
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.borrow().clone()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&mut self) {
        self.calls.borrow_mut().clear();
    }

    /// All memory by page, to compare two moments.
    pub fn memory(&self) -> BTreeMap<Pa, Vec<u8>> {
        self.pages.iter().map(|(page, bytes)| (Pa(page * PAGE), bytes.clone())).collect()
    }

    /// Whether the processors run.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Records a call, and says whether it is one that fails.
    fn enter(&self, call: Call) -> Result<(), EngineError> {
        let number = self.count.get() + 1;
        self.count.set(number);
        let fails = match self.failing {
            Failing::Never => false,
            Failing::At(n) => number == n,
            Failing::From(n) => number >= n,
        };
        let result = if fails {
            let reason = format!("call {number} was told to fail ({call:?})");
            Err(EngineError::Connection { peer: "mock", reason })
        } else {
            Ok(())
        };
        self.calls.borrow_mut().push(call);
        result
    }

    fn check(&self, at: Pa, len: usize) -> Result<(), EngineError> {
        let hole = |reason: &str| Err(EngineError::Memory { pa: at.0, len, reason: reason.to_owned() });
        let Some(end) = at.0.checked_add(len as u64) else { return hole("passes the end of the address space") };
        if (at.0 / PAGE..end.div_ceil(PAGE)).all(|page| self.pages.contains_key(&page)) || len == 0 {
            Ok(())
        } else {
            hole("not memory of this guest")
        }
    }

    fn store(&mut self, at: Pa, bytes: &[u8]) {
        for (address, byte) in (at.0..).zip(bytes) {
            let cell = self.pages.get_mut(&(address / PAGE)).and_then(|page| page.get_mut((address % PAGE) as usize));
            if let Some(cell) = cell {
                *cell = *byte;
            }
        }
    }
}

impl ReadMemory for MockEngine {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.enter(Call::Read { from, len: into.len() })?;
        self.check(from, into.len())?;
        self.peek(from, into);
        Ok(())
    }
}

impl WriteMemory for MockEngine {
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        let told = self.enter(Call::Write { to, bytes: bytes.to_vec() });
        self.check(to, bytes.len())?;
        if self.running {
            return Err(EngineError::Running("a write"));
        }
        let reach = if told.is_ok() { bytes.len() } else { bytes.len() / 2 };
        self.store(to, &bytes[..reach]);
        told
    }
}

impl Pause for MockEngine {
    fn pause(&mut self) -> Result<(), EngineError> {
        self.enter(Call::Pause)?;
        if self.held.is_none() {
            self.held = Some(!self.running);
            self.running = false;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        self.enter(Call::Resume)?;
        if let Some(owner_paused) = self.held.take() {
            self.running = !owner_paused;
        }
        self.react();
        Ok(())
    }

    fn is_paused(&mut self) -> Result<bool, EngineError> {
        self.enter(Call::IsPaused)?;
        Ok(self.held.unwrap_or(!self.running))
    }

    fn is_held(&mut self) -> Result<bool, EngineError> {
        Ok(self.held.is_some())
    }

    fn last_pause(&self) -> Duration {
        Duration::ZERO
    }

    fn resets(&self) -> u64 {
        self.resets
    }
}

impl Vcpus for MockEngine {
    fn registers(&mut self) -> Result<Vec<Registers>, EngineError> {
        self.enter(Call::Registers)?;
        let now = self.registers.front().cloned().unwrap_or_default();
        if self.registers.len() > 1 {
            self.registers.pop_front();
        }
        Ok(now)
    }
}

impl Interrupt for MockEngine {
    fn interrupt(&mut self, apic_id: u8, vector: u8) -> Result<(), EngineError> {
        self.enter(Call::Interrupt { apic_id, vector })?;
        if self.running {
            return Err(EngineError::Running("an interrupt"));
        }
        self.raised.push((apic_id, vector));
        Ok(())
    }
}

impl Calls for MockEngine {
    fn report_code(&self) -> &'static [u8] {
        &[0xeb, 0xfe]
    }

    fn call(&mut self, _: Vcpu, call: &GuestCall) -> Result<u64, CallError> {
        self.enter(Call::Call { function: call.function.0 })?;
        if self.running {
            return Err(EngineError::Running("a call").into());
        }
        let function = self.function.ok_or(CallError::Unsupported("the mock has no functions"))?;
        function(self, call)
    }
}

impl Arena for MockEngine {
    fn arena(&self) -> ArenaSource {
        self.arena
    }
}

impl Engine for MockEngine {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn watch(&mut self) -> Option<&mut dyn Watch> {
        if self.watches { Some(self) } else { None }
    }
}

impl Watch for MockEngine {
    fn attend(&mut self, _: Option<Box<dyn Attend>>, _: &[Va]) -> Result<(), EngineError> {
        self.enter(Call::Watch)
    }

    fn trap(&mut self, _: &Trapped) -> Result<(), EngineError> {
        self.enter(Call::Watch)
    }

    fn untrap(&mut self, _: &Trapped) -> Result<(), EngineError> {
        self.enter(Call::Watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> MockEngine {
        MockEngine::new().with_memory(Pa(0x1ff8), &[1; 16])
    }

    #[test]
    fn memory_is_read_and_written_across_pages_and_has_holes() {
        let mut guest = guest();
        let mut bytes = [0; 4];
        guest.read(Pa(0x1ffe), &mut bytes).expect("memory");
        assert_eq!(bytes, [1; 4]);
        assert!(matches!(guest.read(Pa(0x2fff), &mut [0; 2]), Err(EngineError::Memory { pa: 0x2fff, len: 2, .. })));
        assert!(matches!(guest.read(Pa(u64::MAX), &mut [0; 2]), Err(EngineError::Memory { .. })));
        assert!(matches!(guest.write(Pa(0x1ffe), &[2; 4]), Err(EngineError::Running(_))));
        guest.pause().expect("stopped");
        guest.write(Pa(0x1ffe), &[2; 4]).expect("memory");
        assert!(guest.write(Pa(0xfff), &[2; 2]).is_err());
        let memory = guest.memory();
        assert_eq!(memory.keys().copied().collect::<Vec<_>>(), [Pa(0x1000), Pa(0x2000)]);
        assert_eq!((&memory[&Pa(0x1000)][0xffc..], &memory[&Pa(0x2000)][..4]), (&[1, 1, 2, 2][..], &[2, 2, 1, 1][..]));
    }

    #[test]
    fn the_owners_pause_is_respected() {
        let mut guest = guest();
        for owner_paused in [false, true] {
            guest.set_owner_paused(owner_paused);
            guest.pause().expect("stopped");
            guest.pause().expect("twice is no error");
            assert!(!guest.is_running());
            assert_eq!(guest.is_paused().expect("told"), owner_paused);
            guest.resume().expect("as before");
            assert_eq!(guest.is_running(), !owner_paused);
        }
    }

    #[test]
    fn the_chosen_call_fails_and_no_other() {
        let mut guest = guest();
        guest.pause().expect("stopped");
        guest.fail_at(2);
        guest.registers().expect("first");
        let error = guest.write(Pa(0x2000), &[7; 4]).expect_err("second").to_string();
        assert!(error.contains("told to fail"), "{error}");
        assert_eq!(guest.memory()[&Pa(0x2000)][..4], [7, 7, 1, 1], "half of it is written");
        guest.resume().expect("third");
        assert_eq!(
            guest.calls(),
            [Call::Pause, Call::Registers, Call::Write { to: Pa(0x2000), bytes: vec![7; 4] }, Call::Resume]
        );
        guest.fail_from(1);
        assert!(guest.pause().is_err() && guest.is_paused().is_err() && guest.is_running());
        guest.fail_never();
        guest.pause().expect("all works again");
    }

    #[test]
    fn registers_come_in_order_and_the_last_stay() {
        let mut guest = guest();
        let at = |rip| vec![Registers { rip, ..Registers::default() }];
        guest.set_registers(at(1));
        guest.then_registers(at(2));
        let seen: Vec<_> = (0..3).map(|_| guest.registers().expect("told")[0].rip).collect();
        assert_eq!(seen, [1, 2, 2]);
    }
}
