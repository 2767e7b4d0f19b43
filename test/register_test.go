package test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// proof is what was learned from the complaints of users of daemons of this kind: what a
// test has to show, by which tests it is shown here, and why not where it is not.
type proof struct {
	number, what string
	tests        []string
	// without says why there is no test, or what the tests leave out.
	without string
}

// ofOthers is make bench: crio and containerd take turns.
const ofOthers = "it measures, and compares with other daemons: a benchmark, not a test"

// register are the tests that field work asks for. A number is that of the subject, and
// of the test in it.
func register() []proof {
	return slices.Concat(registerOfLives(), registerOfImages(), registerOfProcesses(), registerOfNodes())
}

func registerOfLives() []proof {
	return []proof{
		{"1.1", "many callers with short deadlines make one object, whichever stage hangs", []string{"TestRunPodSandboxTwiceIsOneSandbox", "TestCreateContainerTwiceIsOneContainer", "TestFaultyPluginInADD", "TestFaultyRuntime"}, "20 callers with short deadlines while CNI's ADD hangs; eight without, and one while another stage hangs"},
		{"1.2", "a runtime that dies in create does not spoil the next container", []string{"TestFaultyRuntime", "TestHangsEndByTheirBudgets"}, "a few times, not 30, and the next container is another one: the one whose create failed has ended"},
		{"1.3", "a volume that hangs costs its container alone", []string{"TestVolumeThatNeverAnswers"}, "the path is named at once, as the stage; the call itself ends after four minutes, which no test waits for"},
		{"1.4", "critest twice without a clean-up", []string{"TestConformance"}, "critest cannot be had here; the suite runs twice on one node"},
		{"2.1", "a long stop is shortened, and everybody else is answered meanwhile", []string{"TestStopOfADayHoldsUpNobody", "TestStopIsAskedKilledAndIdempotent"}, "lists have 5 ms, status and statistics 100; what runs the OCI runtime, and the second stop, have 5 s, for a busy machine"},
		{"2.2", "many stops at once", []string{"TestFiftyStopsAtOnce"}, ""},
		{"2.3", "a daemon that is killed in a stop", []string{"TestStopAcrossARestart", "TestKilledAnywhereNothingIsLostOrLeft"}, ""},
		{"2.4", "a process that cannot be killed", []string{"TestStopOfAProcessThatCannotDie", "TestContainerInAnUninterruptibleSleep"}, ""},
		{"2.5", "no lock is held while something is waited for", []string{"TestKilledAnywhereNothingIsLostOrLeft"}, "readers are timed while each stage is held; there is no build that watches the locks"},
		{"3.1", "a kill at every point", []string{"TestKilledAnywhereNothingIsLostOrLeft"}, ""},
		{"3.2", "an error at every point", []string{"TestFaultyPluginInADD", "TestFaultyPluginInDEL", "TestFaultyRuntime", "TestFaultyKillInASandbox", "TestFullRunDirectory", "TestReadOnlyStateDisk"}, "the parts fail, and the stages that call none do not"},
		{"3.3", "a CNI plugin that fails or hangs in ADD or DEL", []string{"TestFaultyPluginInADD", "TestFaultyPluginInDEL", "TestFailedStopIsTriedAgain", "TestFailedRemovalsAreRetriedOnce", "TestHangsEndByTheirBudgets"}, "the 90 s after which a hang ends are 4 but in the long form; a plugin that says it has done DEL and has not is believed, as CNI has it"},
		{"3.4", "a reboot, with pids that are another's", []string{"TestReboot", "TestRebootTwice", "TestSignalSparesTheSuccessorOfAPid"}, "another boot_id and an empty /run: the machine of the tests goes on; that a pid is another's is shown of the signal alone, not of a daemon after a reboot"},
		{"3.5", "pods that come and go for half an hour", []string{"TestChurn"}, ""},
		{"3.6", "restarts among creations", []string{"TestChurn", "TestKilledAtRandomNothingIsLeft", "TestExitCodesAreRightWhateverHappensToTheDaemon"}, ""},
		{"4.1", "the start of many pods", nil, ofOthers},
		{"4.2", "the same on a busy machine", nil, ofOthers},
		{"4.3", "lists while others are created", []string{"TestKilledAnywhereNothingIsLostOrLeft"}, "while any stage is held; under load: make bench"},
		{"4.4", "allocations of a list", nil, "they are not counted; how long a list of 1,000 containers takes is: make bench"},
	}
}

func registerOfImages() []proof {
	return []proof{
		{"5.1", "a power cut at every flush", []string{"TestPowerCuts", "TestLayersOfAPullThatAPowerCutEnded"}, "at some flushes, and at every one in the long form"},
		{"5.2", "a damaged store costs the damaged image alone", []string{"TestBrokenImageCostsOnlyItself", "TestDamagedListsCostTheirRecordsAlone", "TestStoreCutAtARandomByte", "TestHalfMadeLayerTakesNoOtherLayersName"}, ""},
		{"5.3", "pulls and removals at once, with kills", []string{"TestKilledAmongPullsAndRemovals", "TestConcurrentPullsAreOneDownload", "TestKilledAnywhereNothingIsLostOrLeft"}, "eight clients and two kills; a hundred in the long form, not a thousand"},
		{"6.1", "a registry that is slow, cuts, fails or lies", []string{"TestTransientErrorsAreRetriedOthersNot", "TestCutDownloadIsResumed", "TestStalledDownloadEnds", "TestManifestsThatAreRefused", "TestRegistryThatLies"}, ""},
		{"6.2", "a slow disk is no stall", []string{"TestSlowDownloadIsNotStalled"}, "the network is slow there; bytes to the disk count the same way"},
		{"6.3", "memory of pulls", nil, "make bench has a limit for the daemon's peak in a large pull; not measured are what it keeps after many, and the children that unpack the layers, which end with the pull"},
		{"6.4", "a pull after a killed one reuses what is there", []string{"TestKilledAnywhereNothingIsLostOrLeft"}, "it succeeds; what it downloads again is not counted"},
		{"6.5", "two pulls of one image are one download", []string{"TestConcurrentPullsAreOneDownload"}, ""},
		{"7.1", "credentials and mirrors", []string{"TestPullResultsOfPlainAndTLSRegistries", "TestMirrorIsAsked", "TestOtherCredentialIsAnotherPull", "TestConformance"}, ""},
		{"7.2", "no secret in a log or an error", []string{"TestErrorsHoldNoSecrets", "TestSignedURLIsNotTold", "TestConformance"}, "credentials in log and errors of a daemon, signed URLs in those of its image store"},
	}
}

func registerOfProcesses() []proof {
	return []proof{
		{"8.1", "a fast writer and many rotations", []string{"TestReopenTorture", "TestReopenLosesNoLine", "TestReopenedLogLosesNothing"}, ""},
		{"8.2", "odd lines", []string{"TestLinesKeepTheirBytes", "TestLineInPiecesIsOneRecord"}, ""},
		{"8.3", "a disk for logs that is full or read-only", []string{"TestFullLogDiskIsCounted", "TestFullDiskDropsWholeRecordsAndCounts", "TestReadOnlyDirectoryKeepsTheFile", "TestBrokenDiskIsCountedAndSurvived"}, ""},
		{"8.4", "the last words of a container", []string{"TestLastBytesBeforeTheEnd"}, ""},
		{"8.5", "a directory for logs that vanishes", []string{"TestVanishedDirectoryIsCounted"}, ""},
		{"8.6", "a silent writer costs nothing", []string{"TestIdleMonitorIsSmallAndAsleep"}, ""},
		{"9.1", "commands that time out leave no process", []string{"TestExecSyncTimeoutLeavesNoProcess"}, "1 to 5 s, not 1 s and a tenth, for a busy machine"},
		{"9.2", "output without an end", []string{"TestCVE_2022_31030_EndlessOutputOfExec", "TestCVE_2022_1708_ExecSyncOutputIsCapped"}, ""},
		{"9.3", "commands for ten minutes", []string{"TestChurn"}, "ten commands a second, but the daemon is killed every few seconds: no daemon has them for ten minutes; memory is compared at the end of the long form"},
		{"9.4", "commands at odd moments", []string{"TestExecOfAnEndedContainerIsRefused", "TestExecWhileTheContainerIsMadeAndStarted", "TestExecBeforeTheStartAndInAFrozenContainer", "TestStopOfADayHoldsUpNobody", "TestExecOfACommandThatEndsBeforeTheRuntime", "TestExecOfAKilledDaemonIsEnded"}, ""},
		{"9.5", "the cost of a command", []string{"TestProbeStorm"}, ofOthers},
		{"10.1", "sessions that end in every way leave nothing", []string{"TestSessionsLeaveNothing", "TestManySessionsLeaveNothing"}, "24 of each kind; 1,000 in the long form"},
		{"10.2", "much through a stream", []string{"TestStreamsCarryEveryByte", "TestStdinReachesTheContainerWhole"}, ""},
		{"10.3", "a client that stops reading", []string{"TestStoppedAttachClientDisturbsNobody", "TestStoppedAttachedClientStallsNothing"}, ""},
		{"10.4", "port-forward", []string{"TestPortForward"}, ""},
		{"11.1", "memory of daemon and monitors", []string{"TestIdleMonitorIsSmallAndAsleep"}, "the monitor's; " + ofOthers},
		{"11.2", "a day of churn", []string{"TestLoad", "TestChurn"}, "half an hour of it"},
		{"11.3", "a container at its memory limit takes nobody along", []string{"TestCVE_2019_14891_TheMonitorOutlivesTheMemory"}, "with cgroup v1 and its cgroupfs driver alone; skipped elsewhere"},
		{"12.1", "the monitor's socket and streams in disorder", []string{"TestChaosOfClients", "TestFuzzTarget"}, ""},
		{"12.2", "the monitor under valgrind and the analyzer", []string{"TestValgrind", "TestAnalyzer"}, ""},
		{"12.3", "what conmon's own tests ask", []string{"TestAgainstDebiansConmon", "TestGoldenTranscripts"}, "its subjects, in tests of our own"},
		{"13.1", "exit codes whatever happens to the daemon", []string{"TestExitCodesAreRightWhateverHappensToTheDaemon", "TestManyExits"}, "1,000 with 20 at once and five kills; 10,000 with 50 at once are the long form of the monitor's test, which has no daemon"},
		{"13.2", "a monitor that is killed or stopped", []string{"TestLostMonitorIsTold", "TestHangingMonitorDoesNotKeepItsContainer", "TestRestartWaitsForAMonitorThatDoesNotAnswer"}, ""},
		{"13.3", "full disks for state and run", []string{"TestFullStateDiskKeepsNothingFromBeingRemoved", "TestFullRunDirectory", "TestFullImageStore", "TestExitIsNotLostWhereItCannotBeWritten"}, ""},
		{"13.4", "a first process that ends before its children", []string{"TestWhatTheFirstProcessLeavesIsKilled", "TestSharedPIDNamespaceHasABuiltInReaper"}, ""},
		{"14.1", "the OOM killer is told", []string{"TestOOM", "TestOOMIsToldByTheCounter", "TestOOMKilledIsTold"}, ""},
		{"14.2", "a kill is no OOM kill", []string{"TestSIGKILLIsNotOOM", "TestOOMKilledIsTold"}, ""},
	}
}

func registerOfNodes() []proof {
	return []proof{
		{"15.1", "the metrics of pods", []string{"TestDescriptorsAreCadvisors", "TestConformance"}, ""},
		{"15.2", "statistics among churn", []string{"TestStatisticsWhilePodsComeAndGo"}, "as many pods as three clients make, far from 50 a second"},
		{"15.3", "the cost of statistics", []string{"TestStatisticsOfAFullNode"}, "in the long form alone; the CPU of 15 lists in a row stands for that of one each ten seconds. 250 containers take 0.4 % of a core; not met are the statistics of their pods (1.2 %) and the metrics (1.7 %)"},
		{"16.1", "events and lists agree", []string{"TestEventsReplayedAreTheList"}, ""},
		{"16.2", "a subscriber that never reads", []string{"TestSubscriberThatNeverReads", "TestSlowSubscriberIsDropped"}, ""},
		{"16.3", "events after a restart", []string{"TestEventsReplayedAreTheList", "TestEventsEndWithTheDaemon"}, ""},
		{"17.1", "many pods at once with both cgroup drivers", []string{"TestLoad"}, "with systemd only where it is run by hand, on a node that has it, with CRIO_TEST_CGROUP_MANAGER=systemd; 40 pods, 20 at a time, and 250 in the long form"},
		{"17.2", "systemd away while pods are made", nil, "the runtime speaks with systemd, the daemon does not"},
		{"17.3", "resizes and restarts", []string{"TestFailedUpdateIsTakenBack", "TestKilledInAnUpdateIsTakenBack", "TestConformance"}, ""},
		{"18.1", "user namespaces and everything else", []string{"TestRestartKeepsUserNamespaces", "TestKilledAmongUserNamespacesNothingIsLeft", "TestConformance"}, ""},
		{"18.2", "limits of user namespaces' pods", []string{"TestConformance"}, ""},
		{"19.1", "labels of many files", []string{"TestRelabel"}, "run by hand on a node with SELinux, skipped elsewhere; a few files, not a million, of which the second walk is spared; repeated calls while the first goes on are not shown"},
		{"19.2", "files that change while they are labelled", nil, "no test changes a file while the walk goes on; TestRelabel has a symbolic link that leads out, and needs a node with SELinux"},
		{"19.3", "labels of the node's own files", []string{"TestRelabel", "TestSELinuxRelabel"}, "run by hand on a node with SELinux, skipped elsewhere; a link that is swapped in the walk is not shown"},
		{"20.1", "records of older versions", []string{"TestRecordsFromBeforeUpdates"}, "nothing was released so far"},
		{"20.2", "damaged records", []string{"TestHarmedRecords", "TestEveryGarbledByteIsNoticed", "TestOneBrokenRecordCostsOneObject", "TestBrokenRecordIsSetAside", "FuzzBody"}, ""},
		{"20.3", "a restart changes nothing", []string{"TestRestartChangesNothing"}, ""},
		{"20.4", "an older daemon on newer records", []string{"TestUnknownFieldsSurvive"}, "nothing was released so far"},
		{"21.1", "layers of the configuration", []string{"TestLaterLayersWin", "TestConfigMergesFilesVariablesAndFlags"}, "there is no reload"},
		{"21.2", "every key has an effect", []string{"TestFieldsHaveUniqueFlagsAndDocs", "TestNoKeyIsBothServedAndNot"}, "that each key has a flag of its own and documentation, and is not refused as well; the effect of a key is shown only where a test of the daemon sets it"},
		{"22.1", "network configurations that come and go, and plugins that flap", []string{"TestNetworkConfigurationComesAndGoes", "TestChooseWhileFilesChange", "TestStatus", "TestPluginsThatFlapAreGivenTime"}, "a minute is given to plugins that say they are not ready; a missing configuration or plugin is told at once, for no pod can be attached"},
		{"22.2", "every stall is told with its stage", []string{"TestKilledAnywhereNothingIsLostOrLeft", "TestHangingPluginIsNamedAndHoldsUpNobody", "TestStalledPullAndCommandAreTold"}, ""},
		{"22.3", "a checkpoint is an image", []string{"TestCVE_2024_8676_ACheckpointIsAnImage"}, ""},
	}
}

// TestRegisterIsWhole wants each number in the register, with tests that exist, or with
// the reason why there is none.
func TestRegisterIsWhole(t *testing.T) {
	perSubject := []int{4, 5, 6, 4, 3, 5, 2, 6, 5, 4, 3, 3, 4, 2, 3, 3, 3, 2, 3, 4, 2, 3}
	var numbers []string
	for subject, count := range perSubject {
		for test := range count {
			numbers = append(numbers, fmt.Sprintf("%d.%d", subject+1, test+1))
		}
	}
	functions := testFunctions(t)
	var told []string
	for _, p := range register() {
		told = append(told, p.number)
		if len(p.tests) == 0 && p.without == "" {
			t.Errorf("%s (%s) has neither a test nor a reason", p.number, p.what)
		}
		for _, name := range p.tests {
			if !functions[name] {
				t.Errorf("%s (%s): there is no %s", p.number, p.what, name)
			}
		}
	}
	if !slices.Equal(told, numbers) {
		t.Errorf("the register has %v, want %v", told, numbers)
	}
}

// testFunctions are the names of all tests of the repository.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	functions := map[string]bool{}
	name := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, path := range sources(t, ".go") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, match := range name.FindAllSubmatch(text, -1) {
			functions[string(match[1])] = true
		}
	}
	return functions
}
