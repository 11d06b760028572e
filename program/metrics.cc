#include "program/metrics.h"

#include <limits>
#include <utility>

namespace trafficmirror::program {
namespace {

prometheus::MetricFamily family(std::string name, std::string help, prometheus::MetricType type,
                                std::vector<Sample> samples) {
  prometheus::MetricFamily family{std::move(name), std::move(help), type, {}};
  for (Sample& sample : samples) {
    prometheus::ClientMetric& metric = family.metric.emplace_back();
    metric.label = std::move(sample.labels);
    // The serializer reads the one that the type names.
    metric.counter.value = metric.gauge.value = static_cast<double>(sample.value);
  }
  return family;
}

}  // namespace

prometheus::MetricFamily counter(std::string name, std::string help, std::vector<Sample> samples) {
  return family(std::move(name), std::move(help), prometheus::MetricType::Counter,
                std::move(samples));
}

prometheus::MetricFamily counter(std::string name, std::string help, uint64_t value) {
  return counter(std::move(name), std::move(help), std::vector<Sample>{{value, {}}});
}

prometheus::MetricFamily gauge(std::string name, std::string help, std::vector<Sample> samples) {
  return family(std::move(name), std::move(help), prometheus::MetricType::Gauge,
                std::move(samples));
}

prometheus::MetricFamily gauge(std::string name, std::string help, uint64_t value) {
  return gauge(std::move(name), std::move(help), std::vector<Sample>{{value, {}}});
}

prometheus::MetricFamily histogram(std::string name, std::string help,
                                   std::span<const double> bounds, std::span<const uint64_t> counts,
                                   double sum) {
  prometheus::MetricFamily family{
      std::move(name), std::move(help), prometheus::MetricType::Histogram, {}};
  prometheus::ClientMetric::Histogram& metric = family.metric.emplace_back().histogram;
  for (size_t i = 0; i < counts.size(); ++i) {
    metric.sample_count += counts[i];
    metric.bucket.push_back({metric.sample_count, i < bounds.size()
                                                      ? bounds[i]
                                                      : std::numeric_limits<double>::infinity()});
  }
  metric.sample_sum = sum;
  return family;
}

}  // namespace trafficmirror::program
