"""High rates are mirrored whole; prints what a request costs both programs."""

import labtest
from lab import Lab


class Rates(labtest.LabTest):
    def mirror_at(self, name, **load):
        with Lab() as lab:
            production, shadow = lab.nginx(lab.production), lab.nginx(lab.shadow)
            mirror = lab.mirror()
            programs = {"sidecar": mirror.sidecar, "intercept": mirror.intercept}
            before = {key: program.cpu_seconds() for key, program in programs.items()}
            load["seconds"] = labtest.seconds(10)
            summary = self.mirror_requests(lab, mirror, production, shadow, name, **load)
            figures = []
            for key, program in programs.items():
                cost = (program.cpu_seconds() - before[key]) * 1e6 / summary["ok"]
                memory = program.peak_memory() / 1e6
                figures.append(f"{key} {cost:.1f} µs of CPU a request, peak {memory:.0f} MB")
            print(
                f"\n{name}: {summary['ok']} requests at {summary['rate']:.0f}/s, production "
                f"p50 {summary['p50_us']} µs p99 {summary['p99_us']} µs; {'; '.join(figures)}"
            )

    def test_kept_alive(self):
        self.mirror_at("kept", rate=labtest.rate(10000), connections=100)

    def test_a_connection_for_each(self):
        self.mirror_at("short", rate=labtest.rate(2500), connections=500, mode="close")


if __name__ == "__main__":
    labtest.main()
