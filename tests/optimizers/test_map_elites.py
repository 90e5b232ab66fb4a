from evomerge.optimizers.map_elites import MapElites
from evomerge.testing.optimizers import MultiObjectiveConformance


class TestMapElites(MultiObjectiveConformance):
    def make(self, domain, seed):
        return MapElites(domain, seed, batch=12)
