// Families of metrics for HttpServer, made when somebody asks for them out of whatever counts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <prometheus/metric_family.h>

namespace trafficmirror::program {

struct Sample {
  uint64_t value = 0;
  // Such as {{"reason", "timeout"}}.
  std::vector<prometheus::ClientMetric::Label> labels;
};

// Only goes up; its name ends in "_total".
prometheus::MetricFamily counter(std::string name, std::string help, std::vector<Sample> samples);
prometheus::MetricFamily counter(std::string name, std::string help, uint64_t value);
prometheus::MetricFamily gauge(std::string name, std::string help, std::vector<Sample> samples);
prometheus::MetricFamily gauge(std::string name, std::string help, uint64_t value);
// `counts` of what is not beyond each of `bounds`, which ascend, nor within the one before, and at
// its end of the rest; `sum` is that of all values. Its name ends in the unit of the bounds.
prometheus::MetricFamily histogram(std::string name, std::string help,
                                   std::span<const double> bounds, std::span<const uint64_t> counts,
                                   double sum);

}  // namespace trafficmirror::program
