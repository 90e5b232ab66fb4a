from evomerge.optimizers.nsga2 import Nsga2
from evomerge.optimizers.nsga3 import Nsga3
from evomerge.testing.optimizers import MultiObjectiveConformance


class TestNsga2(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga2(domain, seed, population=12)


class TestNsga3(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga3(domain, seed, population=12)


class TestSteadyNsga2(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga2(domain, seed, population=12, steady_state=True)
class TestSteadyNsga3(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga3(domain, seed, population=12, steady_state=True)
