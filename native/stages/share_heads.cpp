#include "stages/share_heads.h"

#include "api/params.h"

#include <algorithm>
#include <cfloat>
#include <functional>
#include <new>
#include <numeric>

// How many of the `total` largest offers lie in each head; ties: the lower head.
static std::vector<uint32_t> count_largest(const std::vector<std::vector<double>> & offers, size_t total) {
    std::vector<double> all;
    for (const auto & offer : offers) {
        all.insert(all.end(), offer.begin(), offer.end());
    }
    std::vector<uint32_t> counts(offers.size());
    if (total >= all.size()) {
        std::transform(offers.begin(), offers.end(), counts.begin(),
                       [](const auto & offer) { return (uint32_t) offer.size(); });
        return counts;
    }
    std::nth_element(all.begin(), all.begin() + total, all.end(), std::greater<double>());
    const double cut  = all[total];  // the largest that is out
    size_t       left = total;
    for (size_t h = 0; h < offers.size(); ++h) {
        counts[h] = (uint32_t) std::count_if(offers[h].begin(), offers[h].end(), [cut](double x) { return x > cut; });
        left -= counts[h];
    }
    for (size_t h = 0; h < offers.size(); ++h) {
        const size_t ties = std::min(left, (size_t) std::count(offers[h].begin(), offers[h].end(), cut));
        counts[h] += (uint32_t) ties;
        left -= ties;
    }
    return counts;
}

std::vector<uint32_t> restkv_share_heads(const std::vector<const float *> & rows, const std::vector<uint32_t> & n,
                                         uint32_t mean, double floor, uint32_t most, bool normalize) {
    const size_t n_head = rows.size();
    for (size_t h = 0; h < n_head; ++h) {
        // the part of a sum that the best hold means nothing when scores are negative
        normalize = normalize && std::none_of(rows[h], rows[h] + n[h], [](float x) { return x < 0.0f; });
    }
    std::vector<uint32_t>            high(n_head);
    std::vector<std::vector<double>> offers(n_head);
    for (size_t h = 0; h < n_head; ++h) {
        high[h] = most == 0 ? n[h] : std::min(n[h], most);
        std::vector<double> falling(n[h]);
        // an order that sorts need, and sums that are numbers: what is none counts as the largest
        std::transform(rows[h], rows[h] + n[h], falling.begin(),
                       [](float x) { return x == x ? (double) std::clamp(x, -FLT_MAX, FLT_MAX) : (double) FLT_MAX; });
        std::sort(falling.begin(), falling.end(), std::greater<double>());
        const double sum  = std::accumulate(falling.begin(), falling.end(), 0.0);
        const double best = std::accumulate(falling.begin(), falling.begin() + std::min(mean, n[h]), 0.0);
        falling.resize(high[h]);
        for (double & x : falling) {
            x *= normalize && sum != 0.0 ? best / sum : 1.0;
        }
        offers[h] = std::move(falling);
    }
    const size_t total = std::min((size_t) mean * n_head, std::accumulate(high.begin(), high.end(), (size_t) 0));

    const std::vector<uint32_t> counts = count_largest(offers, (size_t) mean * n_head);
    std::vector<double>         shares(n_head);
    std::vector<uint32_t>       past(n_head);
    size_t                      given = 0;
    for (size_t h = 0; h < n_head; ++h) {
        shares[h] = counts[h] * (1.0 - floor) + mean * floor;
        past[h]   = std::min((uint32_t) shares[h], high[h]);
        given += past[h];
    }
    for (; given < total; ++given) {
        size_t head = n_head;
        for (size_t h = 0; h < n_head; ++h) {
            if (past[h] < high[h] && (head == n_head || shares[h] - past[h] > shares[head] - past[head])) {
                head = h;
            }
        }
        past[head]++;
    }
    return past;
}

restkv_status restkv_share(const float * rows, const uint32_t * n, uint32_t n_head, uint32_t mean, double floor,
                           uint32_t most, bool normalize, uint32_t * out) {
    return restkv_call(RESTKV_NO_MEMORY, [&] {
        if (!rows || !n || !out || n_head == 0 || !(floor >= 0.0 && floor <= 1.0)) {
            return restkv_fail(RESTKV_INVALID, "restkv_share: an array is missing, or the floor is not from 0 to 1");
        }
        std::vector<const float *> starts;
        for (uint32_t h = 0; h < n_head; ++h) {
            starts.push_back(rows);
            rows += n[h];
        }
        const std::vector<uint32_t> past = restkv_share_heads(starts, { n, n + n_head }, mean, floor, most, normalize);
        std::copy(past.begin(), past.end(), out);
        return RESTKV_OK;
    });
}
